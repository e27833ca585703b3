"""A score table whose losses are renewed shard by shard, by those of a newer reference: which epoch has whose."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..datasets.batches import map_in_threads
from ..datasets.shards import Shard
from ..errors import CurateError, RunError, StorageError, TableError
from ..scoring.tables.lookup import ScoreTable
from ..units import Report
from .loading import READERS, Row

DIGITS = 16


@dataclass(frozen=True)
class Renewed:
    """A shard that has newer losses; `losses` is a digest of them."""

    name: str
    losses: str


@dataclass(frozen=True)
class Renewals:
    """The shards that have newer losses from an epoch on."""

    epoch: int
    new: list[Renewed]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Renewals:
        return cls(content["epoch"], [Renewed(**one) for one in content["new"]])


class RefreshedTable(ScoreTable):
    """A score table, `newer` losses of which take its place shard by shard. What was `decided` is never decided again; more
    is, where it may `look`, and `note` writes it down first. A shard is taken only where the newer table has every example
    that this one has, with the same target.

    Raises RunError where what was decided is gone or has other losses now.
    """

    def __init__(
        self,
        table: ScoreTable,
        newer: ScoreTable,
        shards: Sequence[Shard],
        decided: Sequence[Renewals],
        *,
        look: bool,
        note: Callable[[Sequence[Renewals]], None],
        report: Report,
    ) -> None:
        super().__init__(table.folder, table.manifest)
        self.newer, self._run_shards = newer, [shard.name for shard in shards]
        self._look, self._note, self._report = look, note, report
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._losses: dict[str, np.ndarray] = {}  # float32, in the order of this table's rows
        self._first: dict[str, int] = {}
        self._decided: list[Renewals] = []
        for renewals in decided:
            names = [one.name for one in renewals.new]
            for one, found in zip(renewals.new, map_in_threads(self._of_shard, names, READERS), strict=True):
                if found != one:
                    raise RunError(
                        f"{newer.folder}: the losses of shard '{one.name}' changed since this run chose by them; restore them"
                    )
            self._take(renewals)

    def renewed(self, rows: Sequence[Row], epochs: Sequence[int]) -> tuple[list[Row], int]:
        """The rows with the losses that their epochs have, and of how many these are newer ones."""
        self.decide(max(epochs, default=0))
        found = [
            replace(row, reference_loss=float(self._losses[row.example.shard][row.score_row]))
            if self._first.get(row.example.shard, math.inf) <= epoch
            else row
            for row, epoch in zip(rows, epochs, strict=True)
        ]
        return found, sum(one is not row for one, row in zip(found, rows, strict=True))

    def summary(self) -> dict[str, Any]:
        """Which references' losses the epochs had."""
        counts = np.cumsum([len(renewals.new) for renewals in self._decided]).tolist()
        return {"reference": told(self.newer), "shards": len(self._run_shards), "renewed_by_epoch": counts}

    def decide(self, epoch: int) -> None:
        """Settle whose losses the epochs up to this one have."""
        with self._lock:
            while self._look and len(self._decided) <= epoch:
                renewals = Renewals(len(self._decided), self._new())
                self._note([*self._decided, renewals])  # before anybody chooses by it
                self._take(renewals)
                if renewals.new:
                    total = len(self._run_shards)
                    self._report(
                        f"epoch {renewals.epoch + 1:,}: {len(self._first):,} of {total:,} shards have losses of "
                        f"{told(self.newer)}, the other {total - len(self._first):,} of {told(self)}"
                    )

    def _new(self) -> list[Renewed]:
        """The shards that are complete in the newer table and were not before. What cannot be used is said once, and looked
        at again the next time."""
        try:
            there = self.newer.shard_names()
        except StorageError as e:
            self._tell(f"newer scores cannot be listed, the next epoch has none of them: {e}")
            return []
        names = [name for name in self._run_shards if name in there and name not in self._first]

        def tried(name: str) -> Renewed | None:
            try:
                return self._of_shard(name)
            except CurateError as e:
                self._tell(f"newer scores of shard '{name}' cannot be used: {e}")
                return None

        return [one for one in map_in_threads(tried, names, READERS) if one is not None]

    def _of_shard(self, name: str) -> Renewed:
        """A shard's newer losses, joined with this table's rows: every example with the same target."""
        self.newer.take_in(name)
        ours, theirs = self.shard(name), self.newer.shard(name)
        if ours.shard_size != theirs.shard_size:
            raise TableError(
                f"{self.newer.folder}: shard '{name}' was scored at size {theirs.shard_size}, in {self.folder} at "
                f"{ours.shard_size}; score both tables again"
            )
        lost = next((key for key in ours.keys if key not in theirs.places), None)
        if lost is not None:
            raise TableError(
                f"{self.newer.folder}: shard '{name}', key '{lost}': no score, and {self.folder} has one; score it too"
            )
        place = np.array([theirs.places[key] for key in ours.keys], dtype=np.int64)
        differ = np.flatnonzero(ours.target_hash != theirs.target_hash[place])
        if len(differ):
            i = int(differ[0])
            raise TableError(
                f"{self.newer.folder}: shard '{name}', key '{ours.keys[i]}': its target's hash is "
                f"{int(theirs.target_hash[place[i]]):016x}, in {self.folder} it is {int(ours.target_hash[i]):016x}; score "
                "both tables again"
            )
        self._losses[name] = theirs.loss[place]
        return Renewed(name, hashlib.sha256(self._losses[name].tobytes()).hexdigest()[:DIGITS])

    def _take(self, renewals: Renewals) -> None:
        self._decided.append(renewals)
        self._first.update({one.name: renewals.epoch for one in renewals.new})

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._report(text)


def told(table: ScoreTable) -> str:
    """A table's reference, for people."""
    return f"'{table.manifest['reference']['name']}' {table.reference_fingerprint[:8]}"
