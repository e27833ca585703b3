"""Lanes: virtual readers that each own a part of every epoch, so that the order is the same however the reading is divided.

A lane reads its shards a window at a time, joins them with their stored scores, and gives their examples in a seeded
random order. What a lane gives depends on the seed and the data alone; a bad example changes only its own lane.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..datasets.decoding import View
from ..datasets.order import Segment, lane_segments, shuffled, windows
from ..datasets.readers import Example, Failure, read_shard, too_many_failures
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..errors import CurateError, FailuresError, ShardError, StorageError, TableError
from ..scoring.settings import OnMissing
from ..scoring.tables.join import join_shard
from ..scoring.tables.keep import Kept
from ..scoring.tables.lookup import ScoreTable, ShardScores


@dataclass
class Row:
    """An example with its stored loss and, where its embeddings or logits are asked for, where its shard's scores hold it
    (-1: nowhere).

    `seen` is what the views made of its image, `tokens` its caption by tokenizer (int32 [L]), each once it was needed.
    """

    example: Example
    reference_loss: float
    scores: ShardScores | None
    score_row: int
    seen: dict[View, Any] = field(default_factory=dict)
    tokens: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedShard:
    """All of a shard: its usable rows, what could not be read, and the rows that the join left out, with the reason.
    `kept` are the rows that a filtered data set keeps of it, ascending; the others are in none of these."""

    rows: list[Row]
    failures: list[Failure]
    left_out: list[tuple[int, str]]
    kept: np.ndarray | None = None

    def place(self, row: int) -> int:
        """Where a row stands in what lanes divide: the shard's rows or, of a filtered data set, those that are kept."""
        if self.kept is None:
            return row
        return min(int(np.searchsorted(self.kept, row)), len(self.kept) - 1)

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.failures) + len(self.left_out)


class UnreadableError(Exception):
    """A shard that cannot be read; `error` says why."""

    def __init__(self, error: CurateError) -> None:
        super().__init__(str(error))
        self.error = error


class ShardLoader:
    """Reads and joins shards for all lanes.

    A data set that fits into `host_bytes` stays in memory. So do shards whose decoded images, of `image_bytes` each, fit
    into `cache_bytes`, and with them what was decoded.
    """

    def __init__(
        self,
        dataset: DatasetSpec,
        shards: Sequence[Shard],
        scores: ScoreTable | None,
        *,
        embeddings: bool,
        logits: bool = False,
        on_missing: OnMissing,
        cache_bytes: int,
        image_bytes: int,
        host_bytes: int,
        max_bad: int = 0,
        kept: Kept | None = None,
    ) -> None:
        self.dataset, self.shards, self.scores, self.kept = dataset, list(shards), scores, kept
        self.embeddings, self.logits, self.on_missing = embeddings, logits, on_missing
        self.max_bad = max_bad
        self.skipped: dict[str, str] = {}
        self._cache: dict[int, LoadedShard] = {}
        self._room, self._image_bytes = cache_bytes, image_bytes
        self._keeps_decoded: set[str] = set()
        self.keeps_all = sum(shard.bytes for shard in self.shards) <= host_bytes
        self._lock = threading.Lock()
        # Two lanes that share a shard must not both read it.
        self._reading = [threading.Lock() for _ in self.shards]

    def keeps(self, row: Row) -> bool:
        """Whether what was decoded of a row may stay in memory."""
        return row.example.shard in self._keeps_decoded

    def load(self, index: int) -> LoadedShard:
        """Raises UnreadableError where the shard cannot be read, JoinError and TableError where its scores do not fit."""
        with self._reading[index]:
            return self._cache[index] if index in self._cache else self._read(index)

    def skip(self, index: int, why: UnreadableError) -> None:
        """Go on without a shard. Raises the shard's own error where too many are bad; `skipped` has name and reason."""
        with self._lock:
            self.skipped[self.shards[index].name] = str(why)
            bad = len(self.skipped)
        if bad <= self.max_bad and bad < len(self.shards):
            return
        more = f"{bad:,} of {len(self.shards):,} shards cannot be read, {self.max_bad:,} may be skipped"
        raise type(why.error)(f"{why}; {more} (--max-bad-shards)") from why

    def _read(self, index: int) -> LoadedShard:
        shard = self.shards[index]
        examples: list[Example] = []
        failures: list[Failure] = []
        try:
            for item in read_shard(self.dataset, shard):
                if isinstance(item, Example):
                    examples.append(item)
                else:
                    failures.append(item)
        except (ShardError, StorageError) as e:
            raise UnreadableError(e) from e
        loaded = self._joined(shard, examples, failures)
        with self._lock:
            room = self._image_bytes * len(loaded.rows)
            fits = room <= self._room and shard.name not in self._keeps_decoded
            if fits:
                self._room -= room
                self._keeps_decoded.add(shard.name)
            if fits or self.keeps_all:
                self._cache.setdefault(index, loaded)
            return self._cache.get(index, loaded)

    def _joined(self, shard: Shard, examples: list[Example], failures: list[Failure]) -> LoadedShard:
        if self.scores is None:
            return LoadedShard([Row(e, float("nan"), None, -1) for e in examples], failures, [])
        if not self.scores.holds(shard.name):
            if self.on_missing == "skip":
                return LoadedShard([], failures, [(e.row, "skipped") for e in examples])
            return LoadedShard([Row(e, float("nan"), None, -1) for e in examples], failures, [])
        stored = self.scores.shard(shard.name, embeddings=self.embeddings, logits=self.logits)
        if stored.shard_size != shard.size:
            raise TableError(
                f"shard '{shard.name}' was scored at size {stored.shard_size} and is now {shard.size}; "
                f"run score-reference into a new --out ({shard.url})"
            )
        joined = join_shard(examples, stored, self.on_missing)
        found = {example.row for example in joined.examples}
        left_out = [
            (e.row, "failed_in_scoring" if e.key in stored.failed_keys else "skipped")
            for e in examples
            if e.row not in found
        ]
        scores = (
            stored if self.embeddings or self.logits else None
        )  # whose keys and hashes would otherwise stay in memory
        places = zip(joined.examples, joined.loss.tolist(), joined.positions.tolist(), strict=True)
        rows = [Row(e, loss, scores, row) for e, loss, row in places]
        if self.kept is None:
            return LoadedShard(rows, failures, left_out)
        kept_N = self.kept.mask(stored)
        return LoadedShard(
            [row for row in rows if kept_N[row.score_row]], failures, left_out, np.sort(stored.row[kept_N])
        )


@dataclass(frozen=True)
class LanePosition:
    """Where a lane stands: the next example is number `offset` of its `window` of `epoch`."""

    epoch: int = 0
    window: int = 0
    offset: int = 0


class Lane:
    """One lane. `take` moves it forward; `position` is where it stands.

    A shard that cannot be read is in `skipped` from then on, in later epochs and after a resume too, so that the lane's
    order does not depend on when the shard can be read again.
    """

    def __init__(
        self, number: int, lanes: int, loader: ShardLoader, rows: Sequence[int] | None, seed: int, room: float
    ) -> None:
        self.number, self.lanes, self.loader, self.rows = number, lanes, loader, rows
        self.seed, self.room = seed, room
        self.position = LanePosition()
        self.skipped: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.unreadable: list[Failure] = []
        self._windows: tuple[int, list[list[Segment]]] | None = None
        self._loaded: tuple[int, int, list[Row]] | None = None

    def take(self, count: int) -> list[Row]:
        """Up to `count` next examples of this epoch; fewer where it ends."""
        found: list[Row] = []
        while len(found) < count:
            at = self.position
            if at.window >= len(self._windows_of(at.epoch)):
                break
            rows = self._rows_of(at)
            part = rows[at.offset : at.offset + count - len(found)]
            found += part
            end = at.offset + len(part)
            more = end < len(rows)
            self.position = LanePosition(at.epoch, at.window if more else at.window + 1, end if more else 0)
        return found

    def holds(self, count: int) -> bool:
        """Whether so many examples can be taken without reading."""
        at = self.position
        if not count:
            return True
        return (
            self._loaded is not None
            and self._loaded[:2] == (at.epoch, at.window)
            and at.offset + count <= len(self._loaded[2])
        )

    def next_epoch(self) -> None:
        self.position = LanePosition(self.position.epoch + 1)

    def _windows_of(self, epoch: int) -> list[list[Segment]]:
        if self._windows is None or self._windows[0] != epoch:
            shards = self.loader.shards
            segments = lane_segments(self.seed, epoch, self.lanes, len(shards), self.rows)[self.number]
            sizes = [shards[s.shard].bytes * self._share(s) for s in segments]
            self._windows = (epoch, windows(segments, sizes, self.room))
        return self._windows[1]

    def _share(self, segment: Segment) -> float:
        """The share of its shard that a segment is."""
        if self.rows is None or segment.last is None:
            return 1.0
        return (segment.last - segment.first) / max(1, self.rows[segment.shard])

    def _rows_of(self, at: LanePosition) -> list[Row]:
        """A window's examples, in the order in which they are given."""
        if self._loaded is None or self._loaded[:2] != (at.epoch, at.window):
            self._loaded = None  # two windows need not be in memory together
            pool: list[Row] = []
            for segment in self._windows_of(at.epoch)[at.window]:
                if segment.shard in self.skipped:
                    continue
                try:
                    loaded = self.loader.load(segment.shard)
                except UnreadableError as e:
                    self.loader.skip(segment.shard, e)
                    self.skipped.add(segment.shard)
                    continue
                pool += [row for row in loaded.rows if _within(loaded.place(row.example.row), segment)]
                if at.epoch == 0 and at.offset == 0:
                    self._count(loaded, segment)
            order = shuffled(self.seed, at.epoch, self.number, at.window, len(pool))
            self._loaded = (at.epoch, at.window, [pool[i] for i in order])
        return self._loaded[2]

    def _count(self, loaded: LoadedShard, segment: Segment) -> None:
        """Every example is counted once: as its lane first comes to it."""
        here = [row for row in loaded.rows if _within(loaded.place(row.example.row), segment)]
        self.counts["examples"] += len(here)
        if self.loader.scores is not None:
            self.counts["scored_in_run"] += sum(row.reference_loss != row.reference_loss for row in here)
        self.unreadable += [failure for failure in loaded.failures if _within(loaded.place(failure.row), segment)]
        self.counts.update(reason for row, reason in loaded.left_out if _within(loaded.place(row), segment))


def _within(row: int, segment: Segment) -> bool:
    return row >= segment.first and (segment.last is None or row < segment.last)


def refuse_too_many(counts: Counter[str], allowed: float, example: Failure) -> None:
    """Raises FailuresError where more than the allowed share of what was read is bad; `example` is one of them."""
    bad, seen = counts["failures"], counts["examples"] + counts["failures"]
    if too_many_failures(bad, seen, allowed):
        raise FailuresError(
            f"{bad:,} of {seen:,} examples read so far are bad (allowed {allowed:.1%}); one of "
            f"them: shard '{example.shard}', key '{example.key}', {example.stage}: {example.reason}"
        )
