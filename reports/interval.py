"""How sure a saving is: 90 % intervals over seeds, both sides paired by seed. Pure functions.

The interval holds every cost at which uniform may have the policy's quality: those where a paired t-test over seeds finds no
significant difference. At a cost x, seed i's difference is its quality under the policy minus its own ladder's quality at x, so
the noise of the ladder counts as much as that of the policy. With normal noise this covers the truth in 90 % of
comparisons at any number of seeds from 2; a percentile bootstrap over 3 seeds covers it in 60 to 65 %
(tests/reports/test_interval.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .savings import Reached, Saving

# 95 % quantiles of Student's t with 1, 2, ... degrees of freedom.
T_95 = (6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331)
STEPS = 64


def t_95(freedom: int) -> float:
    """The 95 % quantile of Student's t; above 9 degrees of freedom by an expansion around the normal, right to 0.002."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.95)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Interval:
    """Both ends of a 90 % interval. An end that lies off the ladder is a bound, as every `Saving` is."""

    low: Saving
    high: Saving

    def __str__(self) -> str:
        """`12 % to 48 %`, `−20 % to > 75 %`; `> 75 %` where both ends are the same bound."""
        low, high = self.low.short, self.high.short
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class SeededSaving(Saving):
    """The saving at the mean quality over seeds, and its interval; None where one seed gives none."""

    interval: Interval | None

    @property
    def shows(self) -> str:
        """What the interval shows: a `gain`, a `loss`, or neither (empty)."""
        if self.interval is None:
            return ""
        return "gain" if self.interval.low.gained else "loss" if self.interval.high.lost else ""

    @property
    def between(self) -> str:
        """The interval in words, or why there is none."""
        return "one seed, no interval" if self.interval is None else f"90 % interval {self.interval}"


def saving_interval(
    cost: float, ladder_costs: Sequence[float], ladders: Sequence[Sequence[float]], qualities: Sequence[float]
) -> Interval | None:
    """The interval of what a policy saved that reached `qualities` at `cost`; `ladders` are uniform's, seed by seed.

    `ladders[i]` and `qualities[i]` have the same seed. None for fewer than two seeds, which have no spread.
    """
    if len(qualities) < 2:
        return None
    low, high = reached_between(ladder_costs, ladders, qualities)
    return Interval(Saving(1 - cost / low.x, low.where), Saving(1 - cost / high.x, high.where))


def reached_between(
    xs: Sequence[float], ladders: Sequence[Sequence[float]], qualities: Sequence[float]
) -> tuple[Reached, Reached]:
    """The least and the greatest x at which a paired t-test does not tell the ladder's quality from that reached.

    `below` and `above` mark an end that the rungs do not bound. Needs two seeds and two rungs or more.
    """
    n = len(qualities)
    assert n >= 2 and len(xs) >= 2
    share = np.arange(STEPS) / STEPS
    rungs_nr = np.asarray(ladders, dtype=float)

    def between(values: np.ndarray) -> np.ndarray:
        """Values at the rungs, the last axis, and at STEPS places from each rung to the next."""
        steps = values[..., :-1, None] + np.diff(values)[..., None] * share
        return np.concatenate([steps.reshape(*values.shape[:-1], -1), values[..., -1:]], axis=-1)

    log_x = between(np.log(xs))
    difference_nx = np.asarray(qualities, dtype=float)[:, None] - between(rungs_nr)
    mean, room = difference_nx.mean(0), t_95(n - 1) * difference_nx.std(0, ddof=1) / math.sqrt(n)
    least = _first(mean - room, log_x, ("below", "above"))
    greatest = _first((-mean - room)[::-1], log_x[::-1], ("above", "below"))
    return least, greatest


def _first(gap: np.ndarray, log_x: np.ndarray, outside: tuple[str, str]) -> Reached:
    """The first x at which `gap` is not above 0. `outside`: what to call it where that is before or behind them all."""
    before, behind = outside
    if gap[0] < 0:
        return Reached(math.exp(log_x[0]), before)  # type: ignore[arg-type]
    passed = np.flatnonzero(gap <= 0)
    if not len(passed):
        return Reached(math.exp(log_x[-1]), behind)  # type: ignore[arg-type]
    at = int(passed[0])
    if at == 0:
        return Reached(math.exp(log_x[0]), "on")
    part = gap[at - 1] / (gap[at - 1] - gap[at])
    return Reached(math.exp(log_x[at - 1] + part * (log_x[at] - log_x[at - 1])), "on")
