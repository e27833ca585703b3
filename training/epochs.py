"""Which shards an epoch has: all of them, or those that had landed when it began."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..datasets.shards import Shard
from ..errors import RunError
from ..scoring.tables.counts import all_counts
from ..scoring.tables.keep import Kept
from ..scoring.tables.lookup import ScoreTable


class Epochs:
    """Every epoch has all shards. `rows` says how many examples each has; None where one of them is not known."""

    def __init__(self, shards: Sequence[Shard], rows: Sequence[int] | None) -> None:
        self.shards, self.rows = shards, rows

    def of(self, epoch: int) -> tuple[int, Sequence[int] | None]:
        """How many of the shards an epoch has, the first ones, and their rows."""
        return len(self.shards), self.rows

    def is_decided(self, epoch: int) -> bool:
        """Whether `of` knows the epoch's shards already."""
        return True

    def is_new(self, shard: str, epoch: int) -> bool:
        """Whether this is the first epoch that has a shard."""
        return epoch == 0


@dataclass(frozen=True)
class Arrival:
    """A shard as a run's records have it. `rows` is None where they are counted by reading it."""

    name: str
    size: int
    rows: int | None


@dataclass(frozen=True)
class Arrivals:
    """The shards that were new in an epoch."""

    epoch: int
    new: list[Arrival]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Arrivals:
        return cls(content["epoch"], [Arrival(**one) for one in content["new"]])


class GrowingEpochs(Epochs):
    """An epoch has the shards that had landed when the first of its lanes began it, and so do all lanes. What was decided is
    never decided again: `note` writes it down, and the next process is given it as `decided`.

    `found` gives a shard by its arrival. `look` returns the new shards beyond those that are known, with their rows;
    without it no more come. Lanes may ask at the same time.
    """

    def __init__(
        self,
        decided: Sequence[Arrivals],
        found: Callable[[Arrival], Shard],
        *,
        look: Callable[[set[str]], list[tuple[Shard, int | None]]] | None = None,
        note: Callable[[Arrivals], None] = lambda arrivals: None,
    ) -> None:
        self.arrivals = list(decided)
        self._look, self._note, self._lock = look, note, threading.Lock()
        self._counts: list[int] = []
        self._first: dict[str, int] = {}
        self._rows: list[int | None] = []
        self._shards: list[Shard] = []
        for arrivals in decided:
            self._take([(found(one), one.rows) for one in arrivals.new])
        super().__init__(self._shards, None)

    @property
    def began(self) -> list[Shard]:
        """The shards of the first epoch."""
        return self._shards[: self._counts[0]]

    @property
    def rows_at_start(self) -> list[int] | None:
        rows = self._rows[: self._counts[0]]
        return None if None in rows else [row or 0 for row in rows]

    def of(self, epoch: int) -> tuple[int, Sequence[int] | None]:
        with self._lock:
            while len(self._counts) <= epoch and self._look is not None:
                new = self._look(set(self._first))
                arrivals = Arrivals(len(self._counts), [Arrival(s.name, s.size, rows) for s, rows in new])
                self._note(arrivals)  # before anybody reads by it
                self.arrivals.append(arrivals)
                self._take(new)
            count = self._counts[min(epoch, len(self._counts) - 1)]
            rows = self._rows[:count]
        return count, None if None in rows else [row or 0 for row in rows]

    def is_decided(self, epoch: int) -> bool:
        return self._look is None or epoch < len(self._counts)

    def is_new(self, shard: str, epoch: int) -> bool:
        return self._first[shard] == epoch

    def counts(self) -> list[int]:
        """How many shards each epoch has, of those that are decided."""
        return list(self._counts)

    def refuse_others(self, counts: Sequence[int]) -> None:
        """Raises RunError where the epochs that a state was made with are other ones."""
        own = self._counts[: len(counts)]
        if own != list(counts):
            raise RunError(
                f"the checkpoint was made with epochs of {list(counts)} shards, the run's records have {own}; restore the "
                "run's shards.json"
            )

    def _take(self, new: Sequence[tuple[Shard, int | None]]) -> None:
        epoch = len(self._counts)
        for shard, rows in new:
            self._first[shard.name] = epoch
            self._rows.append(rows)
            self._shards.append(shard)
        self._counts.append(len(self._shards))


def known_rows(shards: Sequence[Shard], table: ScoreTable | None, kept: Kept | None) -> list[int] | None:
    """How many rows each shard has, bad ones too, or how many are kept of it; None where nobody knows without reading
    the shards."""
    if kept is not None:
        return [kept.counts.get(shard.name, 0) for shard in shards]
    if table is not None:
        known = all_counts(table.folder)
        if all(shard.name in known for shard in shards):
            return [known[shard.name].examples + known[shard.name].failures for shard in shards]
    if all(shard.rows is not None for shard in shards):
        return [shard.rows or 0 for shard in shards]
    return None
