"""Replaying a run with actors: its examples came in no order that a stream gives again, so they are read by their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..errors import RunError, SpecError
from ..scoring.selection import Selection
from .batch import SuperBatch
from .by_place import PlaceReader
from .replay import ReplayScorer
from .sub import SubBatches
from .sub_batch import SubBatch, sub_batch


class ReplayedRows(SubBatches):
    """Gives at each step what the recorded run trained on at that step, in its order.

    A data set that does not fit into memory is read a whole shard for each shard of a step. Raises SpecError for several
    processes, RunError where an example is gone.
    """

    def __init__(self, *given: Any, scorer: ReplayScorer, **settings: Any) -> None:
        super().__init__(*given, scorer=scorer, **settings)
        if self.batches.group.size > 1:
            raise SpecError(f"--replay {scorer.run.folder}: a run with actors is replayed in one process")
        self._recorded = scorer.run
        self._reader = PlaceReader(self.batches.loader)
        self._step = 0

    def __iter__(self) -> Iterator[SubBatch]:
        self._step = self.batches.own_state()["drawn"]
        while True:
            with self.timing("data"):
                sub = self._of_step(self._step + 1)
            self._step += 1
            yield sub

    def _of_step(self, step: int) -> SubBatch:
        record = self._recorded.step(step)
        rows = self._reader.named(record.shards, record.keys)
        batch = self.batches.of_rows(rows, step)
        if not isinstance(batch, SuperBatch):
            bad = next(iter(batch.values()))
            raise RunError(
                f"{self._recorded.folder}: at step {step:,} it trained on shard '{bad.shard}', key '{bad.key}', which cannot be "
                f"decoded now ({bad.reason})"
            )
        self.check(batch)
        batch = batch if self.device is None else batch.to(self.device)

        def here(values: Any) -> torch.Tensor | None:
            return None if values is None else torch.from_numpy(values)

        selection = Selection(
            torch.arange(len(batch)), torch.ones(len(batch)), here(record.online_loss), here(record.reference_loss)
        )
        return sub_batch(batch, selection)

    def own_state(self) -> dict[str, Any]:
        return {**self.batches.own_state(), "drawn": self._step}
