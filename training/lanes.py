"""Lanes: virtual readers that each own a part of every epoch, so that the order is the same however the reading is divided.

A lane reads its shards a window at a time and gives their examples in a seeded random order. What a lane gives depends on
the seed and the data alone; a bad example changes only its own lane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..datasets.order import Segment, lane_segments, shuffled, windows
from ..datasets.readers import Failure
from .loading import LoadedShard, Row, ShardLoader, SkippedShards, UnreadableError


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
        self,
        number: int,
        lanes: int,
        loader: ShardLoader,
        left_out: SkippedShards,
        rows: Sequence[int] | None,
        seed: int,
        room: float,
    ) -> None:
        self.number, self.lanes, self.loader, self.rows = number, lanes, loader, rows
        self.left_out = left_out
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
                    self.left_out.add(segment.shard, e)
                    self.skipped.add(segment.shard)
                    continue
                pool += [row for row in loaded.rows if _within(row.example.row, segment)]
                if at.epoch == 0 and at.offset == 0:
                    self._count(loaded, segment)
            order = shuffled(self.seed, at.epoch, self.number, at.window, len(pool))
            self._loaded = (at.epoch, at.window, [pool[i] for i in order])
        return self._loaded[2]

    def _count(self, loaded: LoadedShard, segment: Segment) -> None:
        """Every example is counted once: as its lane first comes to it."""
        here = [row for row in loaded.rows if _within(row.example.row, segment)]
        self.counts["examples"] += len(here)
        if self.loader.scores is not None:
            self.counts["scored_in_run"] += sum(row.reference_loss != row.reference_loss for row in here)
        self.unreadable += [failure for failure in loaded.failures if _within(failure.row, segment)]
        self.counts.update(reason for row, reason in loaded.left_out if _within(row, segment))


def _within(row: int, segment: Segment) -> bool:
    return row >= segment.first and (segment.last is None or row < segment.last)
