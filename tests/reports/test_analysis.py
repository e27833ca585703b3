"""What is said of points whose answer is known."""

from __future__ import annotations

import pytest
from curate.errors import RunError
from curate.reports.analysis import analyse
from curate.reports.content import Spread
from curate.reports.verdict import verdict
from support.points import point

UNIFORM = [point("uniform", 100.0 * 2**i, 0.4 + 0.1 * i, seed=seed) for i in range(3) for seed in (0, 1)]


def analysed(*more):
    return analyse([*UNIFORM, *more], "top1", 100.0)


def test_savings_in_every_regime_by_hand():
    # 100 updates and 25 FLOPs of scoring reach what uniform needs 400 for.
    mine = [point("learnability", 125.0, q, seed=s, scoring=0.25, reference=50.0) for s, q in enumerate((0.5, 0.7))]
    (row,) = analysed(*mine).savings
    assert row.learner_updates.share == pytest.approx(1 - 100 / (200 * 2**0.999999), abs=1e-5)
    assert row.learner_updates.where == "on"
    # Two seeds 0.2 apart say nothing on a ladder from 0.4 to 0.6.
    assert str(row.learner_updates.interval) == "≤ 0.0 % to > 75 %"
    shares = {name: saving.share for name, saving in row.total_compute.items()}
    expected = {"fully_amortised": 100, "foundation": 125, "pretrained_reference": 175, "nothing_amortised": 225}
    assert shares == pytest.approx({name: 1 - cost / 400 for name, cost in expected.items()}, abs=1e-5)


def test_means_spreads_and_what_is_interpolated():
    mine = [point("learnability", b, q, scoring=0.25) for b, q in ((125.0, 0.5), (250.0, 0.6))]
    analysis = analysed(*mine)
    assert analysis.curves["uniform"][0].quality == Spread(mean=0.4, min=0.4, max=0.4, n=2)
    at_updates, at_flops = analysis.equal["learner_updates"], analysis.equal["total_flops"]
    assert at_updates[0].quality["learnability"].mean == pytest.approx(0.5)
    assert at_updates[0].quality["learnability"].interpolated
    assert not at_updates[0].quality["uniform"].interpolated
    assert at_updates[2].quality.keys() == {"uniform"}  # 400 updates: learnability's largest run made 200
    assert at_flops[1].quality["learnability"].mean == pytest.approx(0.5 + 0.1 * 0.678072, abs=1e-6)


def test_a_reference_of_unknown_cost_leaves_its_regime_open():
    (row,) = analysed(point("learnability", 125.0, 0.5, scoring=0.25, reference=None)).savings
    assert row.total_compute["nothing_amortised"] is None
    assert row.foundation.share == pytest.approx(1 - 125 / 200)


def test_without_uniform_nothing_can_be_said():
    with pytest.raises(RunError, match="no run of policy uniform"):
        analyse([point("learnability", 100.0, 0.5)], "top1", 100.0)


def seeds(policy, budget, *qualities):
    return [point(policy, budget, quality, seed=seed) for seed, quality in enumerate(qualities)]


@pytest.mark.parametrize(
    ("budget", "qualities", "said"),
    [
        (
            100.0,
            (0.5, 0.502),
            "learnability at 1x reaches uniform's quality with 50 % fewer learner updates and 50 % less",
        ),
        (100.0, (0.9, 0.9), "with more than 75 % fewer learner updates and more than 75 % less total compute"),
        (
            400.0,
            (0.5, 0.5),
            "learnability at 4x costs more than uniform: the same quality took 100 % more learner updates",
        ),
        (400.0, (0.1, 0.1), "learnability at 4x costs more than uniform: the same quality took at least 300 % more"),
        (100.0, (0.45, 0.55), "No saving shown: learnability at 1x took"),
        (100.0, (0.5,), "No saving shown: one seed gives no interval. learnability at 1x took 50 % fewer"),
    ],
)
def test_the_verdict_calls_a_loss_a_loss_and_chance_chance(budget, qualities, said):
    found = [*UNIFORM, *seeds("learnability", budget, *qualities)]
    told = verdict(analyse(found, "top1", 100.0, headline_budget=budget))
    assert said in told
    assert ("90 % interval" in told) == (len(qualities) > 1)


def test_the_headline_is_what_was_named_and_not_the_best():
    found = [
        *UNIFORM,
        *seeds("hard-learner", 100.0, 0.42, 0.421),
        *seeds("easy-reference", 100.0, 0.5, 0.5),
        *seeds("easy-reference", 200.0, 0.59, 0.59),
    ]
    analysis = analyse(found, "top1", 100.0)
    assert (analysis.headline.policy, analysis.headline.budget_flops) == ("hard-learner", 100.0)
    said = verdict(analysis)
    assert "named before the runs. Looked at: 2 policies, 3 pairs of policy and budget." in said
    assert "Others at 1x: easy-reference a saving (50 %)." in said
    named = analyse(found, "top1", 100.0, headline_budget=200.0, headline_policy="easy-reference").headline
    assert (named.policy, named.budget_flops) == ("easy-reference", 200.0)
