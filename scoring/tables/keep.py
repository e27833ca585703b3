"""A filtered data set: the share of a scored data set that is kept. What is dropped is never drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ...errors import SpecError, TableError
from ..losses import Losses, one_each
from ..policies import FILTER, Policy, find_policy
from ..settings import KeepBy, check_keep
from .lookup import ScoreTable, ShardScores, open_scores

# The group of all examples, where they are not ranked by class or by shard.
ALL = ""


@dataclass(frozen=True)
class Kept:
    """What is kept of a score table: in each group (a class, a shard, or all) the examples whose score is at least the
    group's `least`. `counts` says how many of each shard, `of` how many were scored; `prior` is a second table. Made by
    `keep_best`."""

    share: float
    by: KeepBy
    policy: Policy
    least: dict[str, float]
    counts: dict[str, int]
    of: int
    prior: ScoreTable | None = None

    @cached_property
    def examples(self) -> int:
        return sum(self.counts.values())

    @cached_property
    def digest(self) -> str:
        """16 hex digits of which examples are kept: a part of what determines the order of examples."""
        return hashlib.sha256(repr((sorted(self.least.items()), sorted(self.counts.items()))).encode()).hexdigest()[:16]

    def mask(self, scores: ShardScores) -> np.ndarray:
        """Which of a shard's scored examples are kept, bool [N]."""
        found: np.ndarray = score_of(self.policy, scores, self.prior) >= _least_of(groups(scores, self.by), self.least)
        return found

    def line(self) -> str:
        among = "" if self.by == "all" else f" of each {self.by}"
        share = f"{self.share * 100:.3g} %"
        return f"{self.examples:,} of {self.of:,} examples are kept: by policy {self.policy}, the best {share}{among}"


def keep_best(
    scores: str | ScoreTable,
    share: float,
    *,
    by: KeepBy = "all",
    policy: str | Policy = FILTER,
    shards: Sequence[str] | None = None,
    prior: str | ScoreTable | None = None,
) -> Kept:
    """Keep this `share`, above 0 and at most 1, of a score table: the examples with the highest score.

    `policy` computes the score from the stored losses, a shard at a time; by default it is the negative loss. With
    `by="class"` or `by="shard"` the share is kept of each class, or of each shard. Of equal scores at the border all are
    kept. `shards` names the shards that count, all by default. A policy that subtracts two tables needs the other, the
    `prior`.

    Raises SpecError for a share or a policy that cannot be, TableError where the table has no class labels, or both tables
    are of one reference.
    """
    check_keep(share, by)
    chosen = find_policy(policy)
    if chosen.score is None or chosen.online != "none" or chosen.joint:
        raise SpecError(f"policy '{chosen}' cannot rank by stored losses alone; its score needs a model or has none")
    if chosen.prior and prior is None:
        raise SpecError(
            f"policy '{chosen}' subtracts two score tables; give prior=, the table of a model trained on the bulk"
        )
    table = open_scores(scores) if isinstance(scores, str) else scores
    other = (open_scores(prior) if isinstance(prior, str) else prior) if chosen.prior else None
    if other is not None and other.reference_fingerprint == table.reference_fingerprint:
        raise TableError(
            f"{other.folder}: was scored by the same reference as {table.folder}, and policy '{chosen}' subtracts the two; "
            "give the table of a model trained on the bulk"
        )
    names = [name for name in (sorted(table.shard_names()) if shards is None else shards) if table.holds(name)]
    if not names:
        raise TableError(f"{table.folder}: none of the shards to keep of is scored; run score-reference first")
    found: dict[str, list[np.ndarray]] = {}
    for _, group_N, score_N in _ranked(table, other, names, by, chosen):
        for group in np.unique(group_N):
            found.setdefault(str(group), []).append(score_N[group_N == group])
    least = {group: _border(np.concatenate(parts), share) for group, parts in found.items()}
    counts: dict[str, int] = {}
    of = 0
    for name, group_N, score_N in _ranked(table, other, names, by, chosen):
        counts[name] = int((score_N >= _least_of(group_N, least)).sum())
        of += len(score_N)
    return Kept(share, by, chosen, least, counts, of, other)


def groups(scores: ShardScores, by: KeepBy) -> np.ndarray:
    """The name of the group of each of a shard's examples, str [N]. Raises TableError where there are no classes."""
    if by == "class":
        if scores.label is None:
            raise TableError(f"shard '{scores.shard}' has captions and no classes; rank by all or by shard")
        return scores.label.astype(str)
    return np.full(len(scores.loss), scores.shard if by == "shard" else ALL)


def score_of(policy: Policy, scores: ShardScores, prior: ScoreTable | None = None) -> np.ndarray:
    """A policy's score of each of a shard's examples, from the stored losses alone, float64 [N]."""
    assert policy.score is not None
    own_N = torch.from_numpy(np.array(scores.loss, dtype=np.float32))
    prior_N = None if prior is None else torch.from_numpy(_losses_of(prior, scores))
    found = policy.score(Losses(reference_B=own_N, prior_B=prior_N))
    score_N: np.ndarray = one_each(f"the score of policy '{policy}'", found, len(own_N)).double().numpy()
    if not np.isfinite(score_N).all():
        bad = int(np.flatnonzero(~np.isfinite(score_N))[0])
        raise SpecError(f"shard '{scores.shard}', key '{scores.keys[bad]}': policy '{policy}' scores {score_N[bad]}")
    return score_N


def _losses_of(table: ScoreTable, scores: ShardScores) -> np.ndarray:
    """Another table's losses of a shard's examples, float32 [N]. Raises TableError where it lacks one, or scored another
    target of it."""
    if not table.holds(scores.shard):
        raise TableError(f"{table.folder}: shard '{scores.shard}' is not scored; run score-reference again")
    other = table.shard(scores.shard)
    rows = [other.places.get(key, -1) for key in scores.keys]
    for key, row, target in zip(scores.keys, rows, scores.target_hash, strict=True):
        if row < 0 or other.target_hash[row] != target:
            what = "is not scored" if row < 0 else "was scored with another target"
            raise TableError(
                f"{table.folder}: shard '{scores.shard}', key '{key}' {what}; score the same data with both references"
            )
    found: np.ndarray = other.loss[rows].astype(np.float32)
    return found


def _least_of(group_N: np.ndarray, least: Mapping[str, float]) -> np.ndarray:
    """Each example's border, float64 [N]."""
    names, place_N = np.unique(group_N, return_inverse=True)
    found: np.ndarray = np.array([least[str(name)] for name in names], dtype=np.float64)[place_N]
    return found


def _ranked(
    table: ScoreTable, prior: ScoreTable | None, names: Sequence[str], by: KeepBy, policy: Policy
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name in names:
        scores = table.shard(name)
        yield name, groups(scores, by), score_of(policy, scores, prior)


def _border(score_N: np.ndarray, share: float) -> float:
    """The score of the last that is kept: at least one is."""
    kept = max(1, round(share * len(score_N)))
    return float(np.partition(score_N, len(score_N) - kept)[len(score_N) - kept])
