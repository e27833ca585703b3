"""The order in which a data set is read: pure functions of a seed, an epoch and the shards' contents.

Super-batches come from V lanes, virtual readers that each own a part of every epoch. The order depends neither on how
many processes or threads read, nor on timing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_LANES = 32


@dataclass(frozen=True)
class Segment:
    """Rows [first, last) of the shard with this index; `last` None stands for the shard's end."""

    shard: int
    first: int = 0
    last: int | None = None


def lane_count(shards: int, size: int, most: int | None = None) -> int:
    """V: one lane for each shard, at most `most` (32 by default) and at most `size`, so that each gives a row."""
    return max(1, min(most or MAX_LANES, shards, size))


def quotas(step: int, size: int, lanes: int) -> list[int]:
    """How many of the `size` rows of super-batch number `step` each lane gives: size / lanes, and the lanes take turns to
    give the remainder."""
    each, more = divmod(size, lanes)
    first = step * more % lanes
    return [each + ((lane - first) % lanes < more) for lane in range(lanes)]


def lane_segments(
    seed: int, epoch: int, lanes: int, shards: int, rows: Sequence[int] | None = None
) -> list[list[Segment]]:
    """What each lane reads in an epoch, in order. Together they are the whole data set, each row once.

    Without `rows` (how many rows each shard has) a lane takes every V-th shard of a random order, so lanes may differ by
    a shard. With `rows` the same random order is cut into V parts of equal length, in the middle of a shard if necessary.
    """
    order = np.random.default_rng((seed, epoch)).permutation(shards).tolist()
    if rows is None:
        return [[Segment(shard) for shard in order[lane::lanes]] for lane in range(lanes)]
    total = sum(rows)
    cuts = [lane * total // lanes for lane in range(lanes + 1)]
    found: list[list[Segment]] = [[] for _ in range(lanes)]
    lane = start = 0
    for shard in order:
        first, count = 0, rows[shard]
        while first < count:
            while start + first >= cuts[lane + 1]:
                lane += 1
            last = min(count, cuts[lane + 1] - start)
            found[lane].append(Segment(shard, first, last))
            first = last
        start += count
    return found


def windows(segments: Sequence[Segment], sizes: Sequence[float], room: float) -> list[list[Segment]]:
    """Runs of segments that fit into `room` together, at least one segment each. `sizes` are those of the segments."""
    found: list[list[Segment]] = []
    held = 0.0
    for segment, size in zip(segments, sizes, strict=True):
        if not found or held + size > room:
            found.append([])
            held = 0.0
        found[-1].append(segment)
        held += size
    return found


def shuffled(seed: int, epoch: int, lane: int, window: int, count: int) -> np.ndarray:
    """A random order of a window's `count` examples, int64 [count]."""
    return np.random.default_rng((seed, epoch, lane, window)).permutation(count)


def order_digest(shards: Sequence[tuple[str, int, int]], *settings: object) -> str:
    """16 hex digits of all that determines the order: they show whether a stored position means the same examples now.

    Of each shard it takes the name, the size and the bytes.
    """
    lines = [f"{name} {size} {in_memory}" for name, size, in_memory in shards] + [repr(setting) for setting in settings]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
