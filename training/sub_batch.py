"""A sub-batch: the examples of a super-batch that were chosen, and why."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ..scoring.selection import Selection
from .batch import SuperBatch


@dataclass(frozen=True)
class SubBatch(SuperBatch):
    """The b examples to train on, with the `selection` that chose them and the super-batch that they were `drawn` from.

    In a group of processes these are this rank's share: n of the b, those at `positions` (int64 [n], ascending) of all
    that were chosen. Their mean loss times `weight` (n W / b), averaged over the W ranks as DistributedDataParallel does
    with gradients, is the mean over b. `moved` of the b examples went from one rank to another. Of a local choice the
    `selection` is that of this rank's own rows. `weights`, float32 [n], multiply each example's loss; None where all weigh 1.
    """

    selection: Selection = field(kw_only=True)
    drawn: SuperBatch = field(kw_only=True)
    positions: torch.Tensor = field(kw_only=True)
    weight: float = field(default=1.0, kw_only=True)
    moved: int = field(default=0, kw_only=True)

    @property
    def weights(self) -> torch.Tensor | None:
        weight_B, index_b = self.selection.weight, self.selection.index
        return None if weight_B is None else weight_B[index_b][self.positions.to(weight_B.device)]

    def take(self, index: torch.Tensor) -> SubBatch:
        """Some of the examples, at `index`. Their `weight` is their share, so that parts add up to the whole."""
        taken: Any = super().take(index)
        share = len(taken) / max(1, len(self))
        changed: SubBatch = replace(
            taken, positions=self.positions[index.to(self.positions.device)], weight=self.weight * share
        )
        return changed

    def tensors(self) -> list[torch.Tensor]:
        """All that are there, each once, with those of the selection and of the super-batch."""
        chosen = [getattr(self.selection, f.name) for f in fields(self.selection)]
        found = [*super().tensors(), *self.drawn.tensors(), *(one for one in chosen if one is not None)]
        return list({id(one): one for one in found}.values())

    def to(self, device: torch.device | str) -> SubBatch:
        """The same examples, the selection and the super-batch with all tensors on a device."""
        found = {f.name: getattr(self.selection, f.name) for f in fields(self.selection)}
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in found.items()}
        here: Any = super().to(device)
        changed: SubBatch = replace(here, selection=Selection(**moved), drawn=self.drawn.to(device))
        return changed


def sub_batch(batch: SuperBatch, selection: Selection) -> SubBatch:
    """The examples of a super-batch that were selected; all of them where as many were. In a group, this rank's share."""
    b = len(selection.index)
    if batch.division is None:
        taken = batch if b == len(batch) else batch.take(selection.index)
        return SubBatch(**_fields(taken), selection=selection, drawn=batch, positions=torch.arange(b))
    deal = batch.division.deal(selection.index)
    taken = batch.dealt(deal)
    weight = len(taken) * batch.division.training / b
    return SubBatch(
        **_fields(taken), selection=selection, drawn=batch, positions=deal.positions, weight=weight, moved=deal.moved
    )


def _fields(batch: SuperBatch) -> dict[str, Any]:
    return {f.name: getattr(batch, f.name) for f in fields(SuperBatch)}
