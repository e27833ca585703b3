"""Lanes: virtual readers that each own a part of every epoch, so that the order is the same however the reading is divided.

A lane reads its shards a window at a time and gives their examples in a seeded random order. What a lane gives depends on
the seed and the data alone; a bad example changes only its own lane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ..datasets.order import Segment, lane_segments, shuffled, windows
from ..datasets.readers import Failure
from .ahead import ReadAhead
from .epochs import Epochs
from .loading import LoadedShard, Row, ShardLoader, SkippedShards, UnreadableError


@dataclass(frozen=True)
class LanePosition:
    """Where a lane stands: the next example is number `offset` of its `window` of `epoch`."""

    epoch: int = 0
    window: int = 0
    offset: int = 0


@dataclass
class Window:
    """A lane's window in memory: its rows in the order in which they are given, None once they are. `held` are the bytes of
    the rows that are left."""

    epoch: int
    number: int
    rows: list[Row | None]
    held: float


class Lane:
    """One lane. `take` moves it forward; `position` is where it stands.

    A shard that cannot be read is in `skipped` from then on, in later epochs and after a resume too, so that the lane's
    order does not depend on when the shard can be read again. Nor does it depend on what was read ahead.
    """

    def __init__(
        self,
        number: int,
        lanes: int,
        loader: ShardLoader,
        left_out: SkippedShards,
        ahead: ReadAhead,
        epochs: Epochs,
        seed: int,
        room: float,
    ) -> None:
        self.number, self.lanes, self.loader, self.epochs = number, lanes, loader, epochs
        self.left_out, self.ahead = left_out, ahead
        self.seed, self.room = seed, room
        self.rows: Sequence[int] | None = None
        self.position = LanePosition()
        self.skipped: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.unreadable: list[Failure] = []
        self._windows: dict[int, list[list[Segment]]] = {}
        self._window: Window | None = None
        self._begun: dict[tuple[int, int, int], Future[LoadedShard]] = {}  # epoch, window, number of the segment

    def take(self, count: int) -> list[Row]:
        """Up to `count` next examples of this epoch; fewer where it ends."""
        found: list[Row] = []
        while len(found) < count:
            at = self.position
            if at.window >= len(self._windows_of(at.epoch)):
                break
            window = self._window_at(at)
            part = [row for row in window.rows[at.offset : at.offset + count - len(found)] if row is not None]
            end = at.offset + len(part)
            window.rows[at.offset : end] = [None] * len(part)
            found += part
            more = end < len(window.rows)
            left = len(window.rows) - end
            self._let_go(window, window.held * left / (left + len(part)) if more else 0.0)
            self.position = LanePosition(at.epoch, at.window if more else at.window + 1, end if more else 0)
        return found

    def holds(self, count: int) -> bool:
        """Whether so many examples can be taken without reading."""
        at, window = self.position, self._window
        if not count:
            return True
        is_here = window is not None and (window.epoch, window.number) == (at.epoch, at.window)
        return window is not None and is_here and at.offset + count <= len(window.rows)

    def next_epoch(self) -> None:
        self.position = LanePosition(self.position.epoch + 1)

    def read_ahead(self) -> None:
        """Begin to read the window after the one that is used, as far as there is room."""
        epoch, number = self.position.epoch, self.position.window
        window = self._window
        if window is not None and (window.epoch, window.number) == (epoch, number):
            number += 1
        if number >= len(self._windows_of(epoch)):
            epoch, number = epoch + 1, 0
            if not self.epochs.is_decided(epoch):  # what lands until it begins is part of it
                return
        for i, segment in enumerate(self._windows_of(epoch)[number] if self._windows_of(epoch) else ()):
            if (epoch, number, i) in self._begun or segment.shard in self.skipped:
                continue
            begun = self.ahead.begin(segment.shard, self._bytes(segment.shard))
            if begun is None:
                return
            self._begun[epoch, number, i] = begun

    def _let_go(self, window: Window, held: float) -> None:
        self.ahead.room.add(held - window.held)
        window.held = held

    def _bytes(self, shard: int) -> float:
        """What a shard takes of the room while it is read; a data set that fits into memory as a whole needs none."""
        return 0.0 if self.loader.keeps_all else self.loader.shards[shard].bytes

    def _windows_of(self, epoch: int) -> list[list[Segment]]:
        if epoch not in self._windows:
            shards = self.loader.shards
            count, self.rows = self.epochs.of(epoch)
            segments = lane_segments(self.seed, epoch, self.lanes, count, self.rows)[self.number]
            sizes = [shards[s.shard].bytes * self._share(s) for s in segments]
            self._windows = {e: found for e, found in self._windows.items() if e >= self.position.epoch}
            self._windows[epoch] = windows(segments, sizes, self.room)
        return self._windows[epoch]

    def _share(self, segment: Segment) -> float:
        """The share of its shard that a segment is."""
        if self.rows is None or segment.last is None:
            return 1.0
        return (segment.last - segment.first) / max(1, self.rows[segment.shard])

    def _window_at(self, at: LanePosition) -> Window:
        """The window of a position in memory. Where it begins in the middle, what was given before is left out."""
        window = self._window
        if window is None or (window.epoch, window.number) != (at.epoch, at.window):
            if window is not None:
                self._let_go(window, 0.0)
            self._window = window = None  # two windows need not be in memory together
            pool: list[Row] = []
            held = 0.0
            for i, segment in enumerate(self._windows_of(at.epoch)[at.window]):
                loaded = self._load((at.epoch, at.window, i), segment)
                if loaded is None:
                    continue
                held += self._bytes(segment.shard) * self._share(segment)
                here = [row for row in loaded.rows if _within(loaded.place(row.example.row), segment)]
                pool += here
                if at.offset == 0 and self.epochs.is_new(self.loader.shards[segment.shard].name, at.epoch):
                    self._count(loaded, segment, here)
            order = shuffled(self.seed, at.epoch, self.number, at.window, len(pool))
            self._window = window = Window(at.epoch, at.window, [pool[i] for i in order], held)
            if at.offset:
                window.rows[: at.offset] = [None] * at.offset
                self._let_go(window, held * (1 - at.offset / len(pool)))
        return window

    def _load(self, key: tuple[int, int, int], segment: Segment) -> LoadedShard | None:
        """The shard of a segment, begun ahead or read now; None where it cannot be read."""
        begun = self._begun.pop(key, None)
        size = self._bytes(segment.shard)
        if segment.shard in self.skipped:
            if begun is not None:
                self.ahead.room.add(-size)
            return None
        if begun is None:
            self.ahead.room.add(size)
        try:
            loaded = begun.result() if begun is not None else self.loader.load(segment.shard)
        except UnreadableError as e:
            self.ahead.room.add(-size)
            self.left_out.add(segment.shard, e)
            self.skipped.add(segment.shard)
            return None
        self.ahead.room.add(-size * (1 - self._share(segment)))
        return loaded

    def _count(self, loaded: LoadedShard, segment: Segment, here: Sequence[Row]) -> None:
        """Every example is counted once: as its lane first comes to it. `here` are the usable ones of the segment."""
        self.counts["examples"] += len(here)
        if self.loader.scores is not None:
            self.counts["scored_in_run"] += sum(row.reference_loss != row.reference_loss for row in here)
        self.unreadable += [failure for failure in loaded.failures if _within(loaded.place(failure.row), segment)]
        self.counts.update(reason for row, reason in loaded.left_out if _within(loaded.place(row), segment))


def _within(row: int, segment: Segment) -> bool:
    return row >= segment.first and (segment.last is None or row < segment.last)
