"""Intervals of savings: by hand, against another way of computing them, and over many simulated comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from curate.reports.analysis import analyse
from curate.reports.interval import reached_between, saving_interval, t_95
from support.points import point

XS = [0.5, 1.0, 2.0, 4.0]
SEED_SD, DOUBLING = 0.003, 0.02
POLICIES, BUDGETS, SEEDS = ("a", "b", "c", "d"), (0.5, 1.0, 2.0), 3


def quality(x):
    """Uniform's at a budget of x: 2 points more with every doubling."""
    return 0.6 + DOUBLING * math.log2(x)


def test_quantiles_of_student():
    """Published: 1.812, 1.725, 1.660 at 10, 20 and 100 degrees of freedom."""
    assert [t_95(n) for n in (1, 2, 10, 20, 100)] == pytest.approx([6.314, 2.920, 1.812, 1.725, 1.660], abs=2e-3)


def test_where_seeds_agree_there_is_one_point():
    interval = saving_interval(1.0, XS, [[quality(x) for x in XS]] * 3, [quality(math.sqrt(2))] * 3)
    assert [interval.low.share, interval.high.share] == pytest.approx([1 - math.sqrt(0.5)] * 2)
    assert (interval.low.where, interval.high.where) == ("on", "on")


def test_what_the_rungs_do_not_bound_is_said():
    ladders = [[quality(x) + noise for x in XS] for noise in (0.0, 0.001)]
    above = saving_interval(1.0, XS, ladders, [0.9, 0.9])
    assert str(above) == "> 75 %"
    wide = saving_interval(1.0, XS, ladders, [0.55, 0.7])
    assert (wide.low.where, wide.high.where) == ("below", "above")
    assert saving_interval(1.0, XS, ladders[:1], [0.6]) is None


def test_seeds_are_paired():
    """A seed that lifts both sides alike tells nothing apart: only the differences count."""
    lifts = (0.0, 0.01, -0.02)
    ladders = [[quality(x) + lift for x in XS] for lift in lifts]
    low, high = reached_between(XS, ladders, [quality(1.5) + lift for lift in lifts])
    assert [low.x, high.x] == pytest.approx([1.5, 1.5])


def test_both_ends_are_where_a_t_test_at_that_cost_turns():
    rng = np.random.default_rng(0)
    ladders = [[quality(x) + e for x, e in zip(XS, rng.normal(0, SEED_SD, 4), strict=True)] for _ in range(3)]
    mine = [quality(1.6) + e for e in rng.normal(0, SEED_SD, 3)]
    for end in reached_between(XS, ladders, mine):
        assert end.where == "on"
        at = [np.interp(math.log(end.x), np.log(XS), ladder) for ladder in ladders]
        difference = np.subtract(mine, at)
        assert abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(3)) == pytest.approx(2.92, rel=0.01)


def simulated(rng, true):
    """(ladders, qualities) of one pair whose policy has at 1x what uniform has at `true`."""
    ladders = np.array([quality(x) for x in XS]) + rng.normal(0, SEED_SD, (SEEDS, len(XS)))
    return ladders, quality(true) + rng.normal(0, SEED_SD, SEEDS)


def percentile_bootstrap(rng, ladders, mine):
    """The other way that was asked for: both sides resampled by seed, the 5 % and 95 % quantiles of where they meet."""
    picks = rng.integers(0, SEEDS, (100, SEEDS))
    met = [np.interp(mine[p].mean(), ladders[p].mean(0), np.log(XS)) for p in picks]
    return np.exp(np.quantile(met, [0.05, 0.95]))


@pytest.mark.parametrize("true", [1.0, 1.3, 2.0])
def test_the_interval_covers_the_truth_in_nine_of_ten(true):
    """4,000 comparisons with 3 seeds: the standard error of a share of 90 % is half a percent."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(4000):
        low, high = reached_between(XS, *simulated(rng, true))
        covered += (low.x <= true or low.where == "below") and (true <= high.x or high.where == "above")
    assert covered / 4000 == pytest.approx(0.90, abs=0.015)


def test_a_percentile_bootstrap_over_three_seeds_is_too_narrow():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = percentile_bootstrap(rng, *simulated(rng, 1.3))
        covered += low <= 1.3 <= high
    assert covered / 200 < 0.75


def test_twelve_pairs_as_good_as_uniform_seldom_make_a_headline():
    """The best of the twelve would claim a saving in most comparisons; the one named before the runs in one of twenty."""
    rng = np.random.default_rng(3)
    claims = best = 0
    rounds = 60
    for _ in range(rounds):
        found = [
            point(policy, budget, quality(budget) + rng.normal(0, SEED_SD), seed=seed)
            for policy, budgets in (("uniform", XS), *((p, BUDGETS) for p in POLICIES))
            for budget in budgets
            for seed in range(SEEDS)
        ]
        analysis = analyse(found, "top1", 1.0)
        assert len(analysis.savings) == 12
        claims += analysis.headline.foundation.shows == "gain"
        best += max(row.foundation.share for row in analysis.savings if row.foundation.where != "below") > 0.05
    assert claims / rounds <= 0.10
    assert best / rounds > 0.5
