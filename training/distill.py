"""Distillation: a teacher's stored logits as soft targets beside the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import SpecError
from ..scoring.losses import distillation
from ..scoring.settings import Reduction
from .batch import SuperBatch


@dataclass(frozen=True)
class Taught:
    """The targets of B examples and the teacher's logits [B, C] of them. Rows are taken of both, as of a tensor."""

    targets_B: torch.Tensor
    logits_BC: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets_B)

    def __getitem__(self, rows: slice) -> Taught:
        return Taught(self.targets_B[rows], self.logits_BC[rows])

    @property
    def device(self) -> torch.device:
        return self.targets_B.device

    @classmethod
    def of(cls, batch: SuperBatch, name: str) -> Taught:
        """Of a batch for the model of this name. Raises SpecError where the batch has no logits."""
        if batch.reference_logits is None:
            raise SpecError("distillation needs stored logits; give SuperBatches(..., scores=table, logits=True)")
        return cls(batch.model_targets(name), batch.reference_logits)


def blended(
    loss: Callable[[Any, torch.Tensor], torch.Tensor], weight: float, temperature: float, reduction: Reduction = "mean"
) -> Callable[[Any, Taught], torch.Tensor]:
    """(1 - weight) x the loss of the labels + weight x the cross-entropy with the teacher's probabilities. `loss` is a mean,
    or with reduction "none" each example's."""

    def both(logits_BC: torch.Tensor, taught: Taught) -> torch.Tensor:
        hard = loss(logits_BC, taught.targets_B)
        return (1 - weight) * hard + weight * distillation(logits_BC, taught.logits_BC, temperature, reduction)

    return both
