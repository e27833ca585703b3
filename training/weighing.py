"""Training losses in which each example has a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Weighed:
    """What a loss takes of B examples, of whatever kind, and the weight of each one's loss, float32 [B]."""

    targets: Any
    weight_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.weight_B)

    def __getitem__(self, rows: slice) -> Weighed:
        return Weighed(self.targets[rows], self.weight_B[rows])

    @property
    def device(self) -> torch.device:
        return self.weight_B.device


class WeighedLoss:
    """The mean of weight x loss over a batch. `losses` gives the loss of each of its examples, [B].

    It keeps the losses themselves, without weights, of all parts of a batch, from `start` on.
    """

    def __init__(self, losses: Callable[[Any, Any], torch.Tensor]) -> None:
        self.losses = losses
        self._seen: list[torch.Tensor] = []

    def __call__(self, output: Any, weighed: Weighed) -> torch.Tensor:
        loss_B = self.losses(output, weighed.targets)
        self._seen.append(loss_B.detach())
        return (weighed.weight_B * loss_B).mean()

    def start(self) -> WeighedLoss:
        """Forget those of the batch before."""
        self._seen.clear()
        return self

    def of_batch(self) -> torch.Tensor:
        """The losses of the batch, [B]."""
        return torch.cat(self._seen)
