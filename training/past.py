"""The learner's own past: the loss of each example when the learner last trained on it. It costs no forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..scoring.losses import Losses
from .batch import SuperBatch, numbers_of
from .group import Group

# For the last eighth of the steps nothing is pruned: delta = 0.875 of InfoBatch (arXiv 2303.04947).
LAST_PRUNED = 0.875


class PastLosses:
    """A scorer without a model: says of each example how its loss differs from the mean of all that are known.

    The loss is that of the step in which the learner trained on the example last; `learned` is called after every step.
    Behind super-batch number `last` it says 0 of all. In a group all ranks know the losses of all.
    """

    views = ()  # the choice needs no images

    def __init__(self, group: Group, last: int) -> None:
        self.group, self.last = group, last
        self._loss: dict[int, float] = {}
        self._sum = 0.0

    def score(self, batch: SuperBatch) -> Losses:
        """`past_B`: the loss less the mean of all; 0 where an example was never trained on."""
        device = batch.targets.device if isinstance(batch.targets, torch.Tensor) else torch.device("cpu")
        past_B = torch.zeros(len(batch), device=device)
        if self._loss and batch.number <= self.last:
            mean = self._sum / len(self._loss)
            known = [self._loss.get(number) for number in _numbers(batch).tolist()]
            past_B = torch.tensor([0.0 if loss is None else loss - mean for loss in known], device=device)
        return Losses(past_B=past_B)

    def charge(self, batch: SuperBatch) -> None:
        """Nothing: the step that trained on the examples paid."""

    def learned(self, batch: SuperBatch, loss_n: torch.Tensor) -> None:
        """Remember the losses of the examples that were trained on, this rank's part of them. A collective."""
        numbers = torch.cat(self.group.gather(_numbers(batch).to(loss_n.device))).tolist()
        losses = torch.cat(self.group.gather(loss_n.float())).tolist()
        for number, loss in zip(numbers, losses, strict=True):
            self._sum += loss - self._loss.get(number, 0.0)
            self._loss[number] = loss

    def state(self) -> dict[str, torch.Tensor]:
        """As a checkpoint holds it: 64-bit numbers of examples, and their losses."""
        return {
            "examples": torch.tensor(list(self._loss), dtype=torch.int64),
            "losses": torch.tensor(list(self._loss.values()), dtype=torch.float64),
            "sum": torch.tensor(self._sum, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._loss = dict(zip(state["examples"].tolist(), state["losses"].tolist(), strict=True))
        self._sum = float(state["sum"])


def _numbers(batch: SuperBatch) -> torch.Tensor:
    """int64 [B]: of each example, by its shard and its key."""
    pairs = zip(batch.shards, batch.keys, strict=True)
    return numbers_of(f"{shard}\n{key}".encode("utf-8", "surrogateescape") for shard, key in pairs)
