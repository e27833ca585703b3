"""The plan: which rows are scored next, and by whom. Each row of the data set is leased once an epoch, in a seeded order.

A lease that is lost is handed out again; what comes back of a lease that was lost is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from ..datasets.order import lane_segments

Chunk = tuple[int, int, int]
"""Of a shard, in the epoch's order of its rows, those from first to before last: (the shard's index, first, last)."""


@dataclass(frozen=True)
class Lease:
    """Of the shard with this index, in the epoch's order of its rows, those from `first` to before `last`. No two leases
    have one `number`."""

    number: int
    epoch: int
    shard: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


def rounds_of(seed: int, epoch: int, lanes: int, rows: Sequence[int], size: int) -> list[list[tuple[int, Chunk]]]:
    """The epoch's order: in each round the next chunk, of at most `size` rows, of each lane, with the lane's number.

    So what is scored within a round comes from all lanes. Lanes are those of the stream of super-batches.
    """
    lanes_of = [
        [
            (lane, (segment.shard, first, min(first + size, segment.last or 0)))
            for segment in segments
            for first in range(segment.first, segment.last or 0, size)
        ]
        for lane, segments in enumerate(lane_segments(seed, epoch, lanes, len(rows), rows))
    ]
    return [[chunk for chunk in chunks if chunk is not None] for chunks in zip_longest(*lanes_of)]


class Plan:
    """Hands out leases of at most `size` rows, epoch after epoch. `rows` says how many each shard has."""

    def __init__(self, *, seed: int, lanes: int, rows: Sequence[int], size: int) -> None:
        assert sum(rows) > 0 and size > 0
        self.seed, self.lanes, self.rows, self.size = seed, lanes, list(rows), size
        self.epoch = self._round = 0
        self._rounds = self._of(0)
        self._left = list(self._rounds[0])
        self._again: list[tuple[int, Chunk]] = []
        self._open: dict[int, Lease] = {}
        self._holder: dict[int, str] = {}
        self._number = 0

    @property
    def begun(self) -> int:
        """How many rows are being scored."""
        return sum(map(len, self._open.values()))

    def lease(self, scorer: str, most: float = math.inf) -> Lease:
        """The next rows, at most so many: those of a lost lease, else of the round. A scorer is given its own lanes where it
        can be, since it has their shards in memory."""
        if self._again:
            epoch, chunk = self._again.pop(0)
        else:
            if not self._left:
                self._next_round()
            lanes = [self._holder.get(lane) for lane, _ in self._left]
            place = next((lanes.index(holder) for holder in (scorer, None) if holder in lanes), 0)
            lane, chunk = self._left.pop(place)
            self._holder[lane] = scorer
            epoch = self.epoch
        shard, first, last = chunk
        if last - first > most:
            self._again.insert(0, (epoch, (shard, first + int(most), last)))
            last = first + int(most)
        self._number += 1
        made = self._open[self._number] = Lease(self._number, epoch, shard, first, last)
        return made

    def rows_of(self, lease: Lease) -> np.ndarray:
        """The numbers of the rows within their shard, int64 [n], ascending."""
        order = np.random.default_rng((self.seed, lease.epoch, lease.shard)).permutation(self.rows[lease.shard])
        return np.sort(order[lease.first : lease.last])

    def done(self, lease: Lease) -> bool:
        """Whether what comes back of a lease is taken; it is not where the lease was lost meanwhile."""
        return self._open.pop(lease.number, None) is not None

    def lost(self, lease: Lease) -> None:
        """Hand the rows out again."""
        if self.done(lease):
            self._again.append((lease.epoch, (lease.shard, lease.first, lease.last)))

    def leave(self, scorer: str) -> None:
        """The lanes of a scorer that is gone are free."""
        self._holder = {lane: holder for lane, holder in self._holder.items() if holder != scorer}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able. What is being scored is handed out again."""
        open_now = [[lease.epoch, lease.shard, lease.first, lease.last] for lease in self._open.values()]
        again = [[epoch, *chunk] for epoch, chunk in self._again]
        left = [[lane, *chunk] for lane, chunk in self._left]
        return {
            "epoch": self.epoch,
            "round": self._round,
            "left": left,
            "again": open_now + again,
            "leases": self._number,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of a plan over the same rows."""
        self.epoch, self._round, self._number = state["epoch"], state["round"], state["leases"]
        self._rounds = self._of(self.epoch)
        self._left = [(lane, (shard, first, last)) for lane, shard, first, last in state["left"]]
        self._again = [(epoch, (shard, first, last)) for epoch, shard, first, last in state["again"]]
        self._open, self._holder = {}, {}

    def _of(self, epoch: int) -> list[list[tuple[int, Chunk]]]:
        return rounds_of(self.seed, epoch, self.lanes, self.rows, self.size)

    def _next_round(self) -> None:
        self._round += 1
        if self._round == len(self._rounds):
            self.epoch, self._round = self.epoch + 1, 0
            self._rounds = self._of(self.epoch)
        self._left = list(self._rounds[self._round])
