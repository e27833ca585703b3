"""What is said of points whose answer is known."""

from __future__ import annotations

import pytest
from curate.errors import RunError
from curate.reports.analysis import analyse
from curate.reports.content import Point, Spread
from curate.reports.verdict import verdict


def point(policy, budget, quality, *, seed=0, scoring=0.0, reference=0.0):
    """A learner whose update costs 1 FLOP and 2 seconds; `scoring` more FLOPs an update; a reference's two lines."""
    updates = budget / (1 + scoring)
    return Point(
        run=f"{policy}-{budget}-{seed}",
        policy=policy,
        budget_flops=budget,
        seed=seed,
        quality=quality,
        costs={"learner_updates": updates, "total_flops": budget, "seconds": 2 * updates},
        filter_ratio=0.5,
        lr=1e-3,
        lines={
            "learner_train": updates,
            "online_score": scoring * updates,
            "online_train": 0.0,
            "reference_score": reference,
            "reference_train": reference,
        },
        regimes={
            "fully_amortised": updates,
            "foundation": budget,
            "pretrained_reference": budget + (reference or 0.0),
            "nothing_amortised": None if reference is None else budget + 2 * reference,
        },
    )


UNIFORM = [point("uniform", 100.0 * 2**i, 0.4 + 0.1 * i, seed=seed) for i in range(3) for seed in (0, 1)]


def analysed(*more):
    return analyse([*UNIFORM, *more], "top1", 100.0)


def test_savings_in_every_regime_by_hand():
    # 100 updates and 25 FLOPs of scoring reach what uniform needs 400 for.
    mine = [point("learnability", 125.0, q, seed=s, scoring=0.25, reference=50.0) for s, q in enumerate((0.5, 0.7))]
    (row,) = analysed(*mine).savings
    assert row.learner_updates.share == pytest.approx(1 - 100 / (200 * 2**0.999999), abs=1e-5)
    assert row.learner_updates.where == "on"
    assert [s.where for s in row.learner_updates.seeds] == ["on", "above"]
    assert [s.share for s in row.learner_updates.seeds] == pytest.approx([0.5, 0.75])
    assert row.learner_updates.spread == "50 % to > 75 %"
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


@pytest.mark.parametrize(
    ("budget", "quality", "said"),
    [
        (100.0, 0.5, "learnability at 1x reaches uniform's quality with 50 % fewer learner updates and 50 % less"),
        (100.0, 0.9, "with more than 75 % fewer learner updates and more than 75 % less total compute"),
        (400.0, 0.5, "No policy saved total compute: the best, learnability at 4x, took 100 % more"),
        (100.0, 0.1, "No policy is known to have saved total compute"),
    ],
)
def test_the_verdict_calls_a_loss_a_loss(budget, quality, said):
    assert said in verdict(analysed(point("learnability", budget, quality)))


def test_the_headline_is_the_largest_saving_known_even_where_it_is_a_bound():
    read = point("easy-reference", 100.0, 0.45)  # uniform's 141
    beyond = point("learnability", 200.0, 0.9)  # more than 400, off the ladder
    loss = point("hard-learner", 400.0, 0.5)
    analysis = analysed(read, beyond, loss)
    assert analysis.headline.policy == "learnability"
    assert "more than 50 % less total compute" in verdict(analysis)
    analysis = analysed(point("learnability", 50.0, 0.1), loss)  # below it: at most 50 % saved
    assert analysis.headline.policy == "hard-learner"
