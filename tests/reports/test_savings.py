"""Savings against ladders worked out by hand."""

from __future__ import annotations

import math

import pytest
from curate.reports.savings import quality_at, reached, saving
from hypothesis import given
from hypothesis import strategies as st

LADDER = [100.0, 200.0, 400.0, 800.0]
QUALITIES = [0.40, 0.50, 0.56, 0.60]


def test_between_two_rungs_halfway_is_the_geometric_mean():
    found = reached(LADDER, QUALITIES, 0.45)
    assert found.where == "on"
    assert found.x == pytest.approx(math.sqrt(100 * 200))
    assert quality_at(LADDER, QUALITIES, math.sqrt(100 * 200)) == pytest.approx(0.45)


def test_half_the_cost_for_the_same_quality_is_half_saved():
    half = saving(100.0, LADDER, QUALITIES, 0.50)
    assert (half.share, half.where, str(half)) == (pytest.approx(0.5), "on", "50 %")
    twice = saving(400.0, LADDER, QUALITIES, 0.50)
    assert (twice.share, twice.where) == (pytest.approx(-1.0), "on")


def test_nothing_is_extrapolated():
    more = saving(200.0, LADDER, QUALITIES, 0.61)
    assert (more.share, more.where, str(more)) == (0.75, "above", "more than 75 %")
    most = saving(50.0, LADDER, QUALITIES, 0.39)
    assert (most.share, most.where, str(most)) == (0.5, "below", "at most 50 %")
    assert quality_at(LADDER, QUALITIES, 99.0) is None
    assert quality_at(LADDER, QUALITIES, 801.0) is None


def test_where_quality_falls_its_first_passing_counts():
    assert reached([1.0, 2.0, 4.0], [0.5, 0.6, 0.4], 0.55).x == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("xs", [[1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
def test_what_is_no_ladder_is_refused(xs):
    with pytest.raises(ValueError, match="ascending and above 0"):
        reached(xs, [0.1 * i for i in range(len(xs))], 0.05)


rungs = st.lists(st.floats(0.01, 0.2), min_size=2, max_size=6)


@given(rungs, st.data())
def test_a_ladder_saves_nothing_against_itself_and_better_quality_never_saves_less(steps, data):
    qualities = [sum(steps[: i + 1]) for i in range(len(steps))]
    costs = [10.0 * 2**i for i in range(len(steps))]
    for cost, quality in zip(costs, qualities, strict=True):
        assert saving(cost, costs, qualities, quality).share == pytest.approx(0, abs=1e-9)
        assert quality_at(costs, qualities, cost) == pytest.approx(quality)
    low, high = sorted(data.draw(st.tuples(st.floats(0, 2), st.floats(0, 2))))
    assert saving(5.0, costs, qualities, low).share <= saving(5.0, costs, qualities, high).share + 1e-12
