"""Who trains on which chosen example, where several ranks hold parts of a super-batch: pure functions of counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shares(chosen: Sequence[int], training: int | None = None) -> list[int]:
    """How many examples each rank trains on, given how many chosen examples each holds: b / W each, and the remainder goes
    to the ranks that hold most. Only the first `training` ranks train, by default all."""
    training = len(chosen) if training is None else training
    each, more = divmod(sum(chosen), training)
    first = sorted(range(training), key=lambda rank: (-chosen[rank], rank))[:more]
    return [each + (rank in first) if rank < training else 0 for rank in range(len(chosen))]


def deal(holder_b: np.ndarray, ranks: int, training: int | None = None) -> np.ndarray:
    """Which rank trains on each of the b chosen examples, int64 [b], given which rank holds it, int64 [b]. The first `training`
    ranks train, by default all.

    A rank keeps the first of its own, up to its share. Only the surplus moves, to the ranks that hold too few, in order.
    """
    held = np.bincount(holder_b, minlength=ranks)
    share = np.array(shares(held.tolist(), training))
    trainer_b = holder_b.astype(np.int64)
    rank_of_b = np.empty(len(holder_b), dtype=np.int64)  # how many of its holder's chosen examples come before it
    for rank in range(ranks):
        own = holder_b == rank
        rank_of_b[own] = np.arange(held[rank])
    surplus = rank_of_b >= share[holder_b]
    trainer_b[surplus] = np.repeat(np.arange(ranks), np.maximum(share - held, 0))
    return trainer_b
