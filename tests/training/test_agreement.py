"""The tolerance of losses that are scored again, and their order."""

import numpy as np
import pytest
from curate.training.agreement import LEAST_CORRELATION, Agreement, _ranks
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

RANDOM = np.random.default_rng(0)


def case(spread, error=0.003, count=64):
    """Losses in float32, and the same in a coarser format on two machines."""
    exact = RANDOM.normal(-0.2, spread, count)
    here, there = (exact + np.clip(RANDOM.normal(0, error / 2.5, count), -error, error) for _ in range(2))
    return exact, here, there


@pytest.mark.parametrize("spread", [0.0, 0.003, 0.006, 0.01, 0.05, 0.3])
def test_what_another_machine_computes_agrees(spread):
    correlations = []
    for _ in range(200):
        exact, here, there = case(spread)
        agree = Agreement.of(here, exact, 0.015)
        assert agree.first_apart(there, here) is None
        correlations.append(agree.rank_correlation(there, here))
    assert min((found for found in correlations if found is not None), default=1) > LEAST_CORRELATION
    assert all(found is None for found in correlations) == (spread < 0.005)


def of_other_images(loss_K, tolerance):
    """Of a model that saw images that were resized otherwise: within the tolerance, and as large on average."""
    apart_K = np.clip(RANDOM.normal(0, 0.45 * tolerance, len(loss_K)), -0.98 * tolerance, 0.98 * tolerance)
    return loss_K + apart_K


@pytest.mark.parametrize(("spread", "share"), [(0.008, 0.9), (0.01, 0.8), (0.051, 0.0)])
def test_other_losses_of_a_weak_reference_are_known_by_their_order_alone(spread, share):
    """Where losses are spread as usual (a dot product's standard deviation is 0.051), the order tells nothing that the
    tolerance does not, as docs/method.md says."""
    within = caught = 0
    for _ in range(200):
        exact, here, _ = case(spread)
        agree = Agreement.of(here, exact, 0.015)
        other = of_other_images(here, agree.tolerance)
        correlation = agree.rank_correlation(other, here)
        if agree.first_apart(other, here) is None and correlation is not None:
            within += 1
            caught += correlation < LEAST_CORRELATION
    assert within > 150
    assert caught >= share * within if share else caught == 0


def test_the_tolerance_is_five_times_the_measured_error_within_its_bounds():
    exact = np.linspace(0.1, 4, 40)
    for error, tolerance in ((0.0, 0.001), (0.01, 0.05), (0.05, 0.1)):
        here = exact.copy()
        here[7] += error
        assert Agreement.of(here, exact, 0.1).tolerance == pytest.approx(tolerance)
    agree = Agreement()
    for apart, place in ((0.00099, None), (0.00101, 3)):
        then = exact.copy()
        then[3] += apart
        assert agree.first_apart(then, exact) == place
    then[39] += 0.0039  # of a loss of 4
    assert agree.first_apart(np.r_[exact[:39], then[39]], exact) is None
    assert agree.rank_correlation(exact[::-1], exact) == pytest.approx(-1)
    assert agree.rank_correlation(np.full(40, 2.0), exact) == 0
    assert agree.rank_correlation(exact[:20], exact[:20]) is None


@given(st.lists(st.integers(0, 9), min_size=3, max_size=40), st.randoms())
def test_ranks_are_spearmans(values, random):
    other = random.sample(values, len(values))
    one, two = np.array(values, float), np.array(other, float)
    if one.std() and two.std():
        assert np.corrcoef(_ranks(one), _ranks(two))[0, 1] == pytest.approx(spearmanr(one, two).statistic)
