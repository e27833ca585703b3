"""Drawing the rows of super-batches from the lanes: bad examples are replaced, and every position can be continued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

from ..datasets.batches import map_in_threads
from ..datasets.order import order_digest, quotas
from ..datasets.readers import MIN_JUDGED, Failure, too_many_failures
from ..datasets.shards import Shard
from ..errors import FailuresError, SpecError
from .ahead import HostRoom, ReadAhead
from .epochs import Epochs, GrowingEpochs
from .group import Group
from .lanes import Lane, LanePosition
from .loading import READERS, Row, ShardLoader, SkippedShards
from .refreshed import RefreshedTable

# A lane that had to skip shards may find nothing in an epoch; after so many of them it never will.
EMPTY_EPOCHS = 64

LookAt = Callable[[Sequence[Row]], dict[int, Failure]]
"""Makes the views of rows that are made ahead; returns the failures, by the row's id."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All that determines the order of examples. `rows` of each shard are None where they are not known; `rows_were_read`
    says that they are known from reading the shards. `filtered` says what is kept of the data, if not all, and what is mixed
    into it. Of a data set that grows, `shards` and `rows` are those of the first epoch."""

    shards: Sequence[Shard]
    rows: list[int] | None
    rows_were_read: bool
    lanes: int
    size: int
    seed: int
    host_bytes: int
    filtered: tuple[object, ...] = ()
    growing: GrowingEpochs | None = None

    @cached_property
    def epochs(self) -> Epochs:
        return self.growing or Epochs(self.shards, self.rows)

    @cached_property
    def digest(self) -> str:
        shards = [(shard.name, shard.size, shard.bytes) for shard in self.shards]
        return order_digest(shards, self.rows, self.lanes, self.size, self.seed, self.host_bytes, *self.filtered)

    def start(self) -> dict[str, Any]:
        """The state before the first super-batch."""
        return {
            "order": self.digest,
            "drawn": 0,
            "lanes": [list(astuple(LanePosition()))] * self.lanes,
            "counts": {},
            "rows": self.rows if self.rows_were_read else None,
            "skipped": {},
            "lane_skips": [[]] * self.lanes,
            **({"epochs": self.growing.counts()} if self.growing else {}),
        }


class Drawing:
    """Draws from where `state` stands. Rank r of W draws the rows of the lanes r, r + W, ... `room` counts the bytes of
    memory that it takes."""

    def __init__(
        self,
        name: str,
        layout: Layout,
        loader: ShardLoader,
        group: Group,
        state: Mapping[str, Any],
        look_at: LookAt,
        *,
        max_failures: float,
        max_bad_shards: int,
    ) -> None:
        self.name, self.layout, self.group = name, layout, group
        self.look_at, self.max_failures = look_at, max_failures
        self.drawn: int = state["drawn"]
        self.counts = Counter(state["counts"])
        self.skipped = SkippedShards(layout.epochs.shards, max_bad_shards, state["skipped"])
        self.room = HostRoom(layout.host_bytes)
        self._ahead = ReadAhead(loader.load, self.room)
        room = layout.host_bytes / layout.lanes
        self.lanes = [
            Lane(v, layout.lanes, loader, self.skipped, self._ahead, layout.epochs, layout.seed, room)
            for v in range(layout.lanes)
        ]
        for lane, position, skips in zip(self.lanes, state["lanes"], state["lane_skips"], strict=True):
            lane.position, lane.skipped = LanePosition(*position), set(skips)
        self._scores, self._keeps = loader.scores, loader.keeps
        self.last_failure: Failure | None = None

    def next(self, count: int | None = None) -> tuple[list[Row], list[bool]]:
        """This rank's rows of the next super-batch, in lane order; whether each is in the first epoch of its lane. `count`
        are the rows of all ranks, the layout's by default."""
        wanted = quotas(self.drawn, self.layout.size if count is None else count, self.layout.lanes)
        own = [count if v % self.group.size == self.group.rank else 0 for v, count in enumerate(wanted)]
        rows = self._fill(own)
        epochs = [lane.position.epoch for lane, count in zip(self.lanes, own, strict=True) for _ in range(count)]
        is_new = self.layout.epochs.is_new
        is_first = [is_new(row.example.shard, epoch) for row, epoch in zip(rows, epochs, strict=True)]
        if isinstance(self._scores, RefreshedTable):
            rows, renewed = self._scores.renewed(rows, epochs)
            self.counts["chosen_from_by_newer_scores"] += renewed
        self.drawn += 1
        for lane, count in zip(self.lanes, own, strict=True):
            if count:
                lane.read_ahead()
        return rows, is_first

    def close(self) -> None:
        """Read nothing more ahead."""
        self._ahead.close()

    def state(self) -> dict[str, Any]:
        """Where it stands after the super-batch drawn last."""
        return {
            **self.layout.start(),
            "drawn": self.drawn,
            "lanes": [list(astuple(lane.position)) for lane in self.lanes],
            "counts": dict(self.counts),
            "skipped": dict(self.skipped.reasons),
            "lane_skips": [sorted(lane.skipped) for lane in self.lanes],
        }

    def _fill(self, wanted: Sequence[int]) -> list[Row]:
        """So many examples of each lane that all views can see, in lane order. Bad ones are replaced within their lane."""
        have: list[list[Row]] = [[] for _ in self.lanes]
        began_epochs = [0] * len(have)
        while True:
            missing = [want - len(rows) for want, rows in zip(wanted, have, strict=True)]
            if not any(missing):
                return [row for rows in have for row in rows]
            taken = self._take(missing)
            failed = self.look_at([row for rows in taken for row in rows])
            for v, (lane, rows) in enumerate(zip(self.lanes, taken, strict=True)):
                have[v] += [row for row in rows if id(row) not in failed]
                self._count(lane, [failed[id(row)] for row in rows if id(row) in failed])
                if len(rows) < missing[v]:  # this epoch ends with too few for a super-batch
                    if began_epochs[v] >= (EMPTY_EPOCHS if lane.skipped else 1):
                        raise self._too_small(lane, len(have[v]), wanted[v])
                    self.counts["dropped"] += len(have[v])
                    for row in have[v]:
                        if not self._keeps(row):
                            row.seen.clear()  # it would hold the memory of all others
                    have[v] = []
                    began_epochs[v] += 1
                    lane.next_epoch()
                    self._judge_epoch()

    def _take(self, counts: Sequence[int]) -> list[list[Row]]:
        """The next candidates of each lane; several lanes read at a time where some have to read."""
        if all(lane.holds(count) for lane, count in zip(self.lanes, counts, strict=True)):
            return [lane.take(count) for lane, count in zip(self.lanes, counts, strict=True)]
        pairs = list(zip(self.lanes, counts, strict=True))
        return map_in_threads(lambda pair: pair[0].take(pair[1]), pairs, READERS)

    def _count(self, lane: Lane, failures: Sequence[Failure]) -> None:
        """Every example is counted once: in the first epoch that has its shard."""
        self.counts.update(lane.counts)
        lane.counts.clear()
        is_new, epoch = self.layout.epochs.is_new, lane.position.epoch
        new = [failure for failure in failures if is_new(failure.shard, epoch)]
        found = [*lane.unreadable, *new]
        lane.unreadable.clear()
        self.counts["failures"] += len(found)
        self.counts["examples"] -= len(new)  # they were counted as usable when they were read
        if found or failures:
            self.last_failure = (found or failures)[-1]
        if found:
            refuse_too_many(self.counts, self.max_failures, found[-1])

    def _judge_epoch(self) -> None:
        """Once all data were read, their bad share is known however few they are. A rank knows its own part, and judges by
        that alone: as if the other ranks had found nothing bad."""
        own = self.lanes[self.group.rank :: self.group.size]
        if self.last_failure is None or not all(lane.position.epoch for lane in own):
            return
        bad, usable = self.counts["failures"], self.counts["examples"]
        if too_many_failures(bad, (usable + bad) * self.group.size, self.max_failures, at_least=1):
            refuse_too_many(self.counts, self.max_failures, self.last_failure, at_least=1)

    def _too_small(self, lane: Lane, found: int, wanted: int) -> SpecError:
        size, lanes = self.layout.size, self.layout.lanes
        if lanes == 1 or lane.rows is not None:
            what = f"has {self.counts['examples']:,} usable examples, a super-batch needs {size:,}"
        else:
            what = f"has {found:,} usable examples in one of its {lanes} lanes, which needs {wanted:,}"
        why = f"; the last bad one: {self.last_failure.reason}" if self.last_failure else ""
        return SpecError(
            f"data set '{self.name}' {what}; lower --batch-size, --filter-ratio or --lanes (here: size, lanes){why}"
        )


def refuse_too_many(counts: Mapping[str, int], allowed: float, example: Failure, at_least: int = MIN_JUDGED) -> None:
    """Raises FailuresError where more than the allowed share of what was read is bad; `example` is one of them."""
    bad, seen = counts.get("failures", 0), counts.get("examples", 0) + counts.get("failures", 0)
    if too_many_failures(bad, seen, allowed, at_least):
        raise FailuresError(
            f"{bad:,} of {seen:,} examples read so far are bad (allowed {allowed:.1%}); one of "
            f"them: shard '{example.shard}', key '{example.key}', {example.stage}: {example.reason}"
        )
