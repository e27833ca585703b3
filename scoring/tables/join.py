"""The join of training examples with their stored scores: on (shard, key), proven by a hash of the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...datasets.readers import Example
from ...errors import JoinError
from ..settings import OnMissing
from .lookup import ShardScores


class Joined(NamedTuple):
    """The examples that stay, their reference losses float32 [N] (NaN where the run has to compute them), counts of those
    that were dropped or have to be computed, and each one's row in the score file, int64 [N] (-1: none)."""

    examples: list[Example]
    loss: np.ndarray
    counts: Counter[str]
    positions: np.ndarray


def join_shard(examples: Sequence[Example], scores: ShardScores, on_missing: OnMissing = "error") -> Joined:
    """Join one shard's examples with its scores.

    With `on_missing="score"` the caller computes the missing losses. Raises JoinError at the first example whose score is
    missing or whose target is not the one that was scored; it names shard, key and both values.
    """
    counts: Counter[str] = Counter()
    keys = [example.key for example in examples]
    hashes = np.fromiter((e.target_hash for e in examples), dtype=np.uint64, count=len(examples))
    if keys == scores.keys:
        # The usual case: same shard, same order. It makes the join nearly free.
        positions = np.arange(len(keys))
    else:
        index = {key: i for i, key in enumerate(scores.keys)}
        positions = np.fromiter((index.get(key, -1) for key in keys), dtype=np.int64, count=len(keys))
    found = positions >= 0
    stored = np.where(found, scores.target_hash[positions] if len(scores.keys) else 0, hashes)
    if (stored != hashes).any():
        bad = int(np.flatnonzero(stored != hashes)[0])
        raise JoinError(
            f"shard '{scores.shard}', key '{keys[bad]}': the target's hash is {int(hashes[bad]):016x}, the score table "
            f"has {int(stored[bad]):016x}; labels or captions changed since scoring: run score-reference into a new --out"
        )
    loss = np.where(found, scores.loss[positions] if len(scores.keys) else np.nan, np.nan).astype(np.float32)
    if found.all():
        return Joined(list(examples), loss, counts, positions)
    keep = np.ones(len(keys), dtype=bool)
    for i in np.flatnonzero(~found):
        if keys[i] in scores.failed_keys:
            keep[i] = False
            counts["failed_in_scoring"] += 1
        elif on_missing == "error":
            raise JoinError(
                f"shard '{scores.shard}', key '{keys[i]}': expected a score, found none among {len(scores.keys):,}; "
                "run score-reference again, or choose --on-missing score|skip"
            )
        elif on_missing == "skip":
            keep[i] = False
            counts["skipped"] += 1
        else:
            counts["scored_in_run"] += 1
    return Joined([e for e, kept in zip(examples, keep, strict=True) if kept], loss[keep], counts, positions[keep])
