"""The ledger against FLOPs counted independently over a whole run, and the cost model's arithmetic."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from curate.errors import BudgetError
from curate.ledger import Ledger, steps_within
from curate.training import RunOptions, train
from curate.training.schedule import learning_rate
from curate.units import format_flops, parse_flops
from open_clip_train.scheduler import const_lr_cooldown
from support.commands import silent
from support.counting import OfRealTensors
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.mark.parametrize("policy", ["uniform", "hard-learner", "small-loss", "easy-reference", "learnability", "rho"])
def test_every_flop_of_a_run_is_in_the_ledger(policy, digits, tmp_path):
    """A counter around the whole run, data loading and all, must come to exactly what the ledger says."""
    options = RunOptions.of(
        dataset="digits",
        learner="learner",
        policy=policy,
        online="scorer",
        reference_scores=digits.scores,
        steps=7,
        batch_size=20,
        filter_ratio=0.8,
        precision="fp32",
        evaluate=False,
        out=str(tmp_path),
        name="run",
    )
    with sdpa_kernel(SDPBackend.MATH), OfRealTensors(display=False) as counter:
        summary = train(options, config=digits.config, report=silent)
    lines, outside = summary["ledger"], summary["outside_the_ledger"]
    spent = lines["learner_train"] + lines["online_score"] + lines["online_train"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert spent == 7 * sum(manifest["flops_per_step"].values())
    assert counter.get_total_flops() == spent + outside.get("verification", 0)
    assert (lines["online_score"] > 0) == (policy in ("hard-learner", "small-loss", "learnability", "rho"))
    assert (lines["online_train"] > 0) == (policy in ("hard-learner", "small-loss", "learnability"))
    assert (lines["reference_score"] > 0) == (policy in ("easy-reference", "learnability", "rho"))


def test_what_a_run_computes_twice_is_in_the_ledger_twice(pairs, tmp_path):
    """Two passes over the batch, and blocks that are computed again in the backward pass."""
    options = dict(
        dataset="pairs", learner="clip", steps=3, batch_size=10, precision="fp32", evaluate=False, out=str(tmp_path)
    )
    lines = {}
    for name, changes in (
        ("plain", {}),
        ("parts", {"accumulate": 3}),
        ("both", {"accumulate": 3, "grad_checkpointing": True}),
    ):
        with sdpa_kernel(SDPBackend.MATH), OfRealTensors(display=False) as counter:
            summary = train(RunOptions.of(**options, **changes, name=name), config=pairs.config, report=silent)
        lines[name] = summary["ledger"]["learner_train"]
        assert counter.get_total_flops() == lines[name], name
    assert 1.2 * lines["plain"] < lines["parts"] < 1.4 * lines["plain"]
    assert 1.1 * lines["parts"] < lines["both"] < 1.3 * lines["parts"]


def test_regimes_add_up():
    ledger = Ledger(learner_train=100, online_score=10, online_train=5, reference_score=3, reference_train=2)
    assert ledger.regimes() == {
        "fully_amortised": 100,
        "foundation": 115,
        "pretrained_reference": 118,
        "nothing_amortised": 120,
    }
    assert Ledger(reference_train=None).regimes()["nothing_amortised"] is None


@pytest.mark.parametrize(
    ("text", "flops"),
    [("2e13", 2e13), ("20TF", 2e13), ("1EF", 1e18), ("1.5 PF", 1.5e15), ("500gflops", 5e11), ("7", 7)],
)
def test_budgets_are_read(text, flops):
    assert parse_flops(text) == flops


@pytest.mark.parametrize("text", ["", "abc", "-1TF", "0", "1XF", "nan", "1e", "1..2TF", "infTF"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(BudgetError, match="20TF"):
        parse_flops(text)


def test_steps_fill_the_budget_and_never_pass_it():
    assert steps_within(100, 10) == 10
    assert steps_within(99.9, 10) == 9
    assert steps_within(100, 10, charged=15) == 8
    with pytest.raises(BudgetError, match=r"smaller than one step \(2 TF\)"):
        steps_within(1e12, 2e12)
    with pytest.raises(BudgetError, match="after 1 TF for the reference"):
        steps_within(2e12, 1.5e12, charged=1e12)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 5), (10, 0), (1, 0), (1000, 50)])
def test_the_schedule_ends_where_the_budget_does(steps, warmup):
    rates = [learning_rate(step, steps, 0.3, warmup) for step in range(steps)]
    assert max(rates) == pytest.approx(0.3)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert learning_rate(steps, steps, 0.3, warmup) == pytest.approx(0, abs=1e-12)
    if steps > 50:
        assert rates[-1] < 1e-3 * 0.3


@pytest.mark.parametrize(("steps", "warmup", "cooldown"), [(100, 5, 20), (10, 2, 8), (1, 0, 1), (50, 0, 0)])
def test_a_cooldown_holds_the_peak_and_is_open_clips(steps, warmup, cooldown):
    rates = [learning_rate(step, steps, 0.3, warmup, cooldown) for step in range(steps)]
    groups = [{"lr": 0.0}]
    theirs = const_lr_cooldown(SimpleNamespace(param_groups=groups), 0.3, warmup, steps, cooldown)
    for step in range(steps):
        theirs(step)
        assert rates[step] == pytest.approx(groups[0]["lr"])
    assert rates[warmup : steps - cooldown] == [0.3] * (steps - cooldown - warmup)
    assert learning_rate(steps, steps, 0.3, warmup, cooldown) == 0


def test_format():
    assert format_flops(1.234e13) == "12.3 TF"
    assert format_flops(12) == "12"


def test_the_budget_stops_the_run_and_charging_the_reference_shortens_it(digits, tmp_path):
    def run(name, **changes):
        options = dict(
            dataset="digits",
            learner="learner",
            policy="learnability",
            online="scorer",
            reference_scores=digits.scores,
            budget_flops=3e9,
            batch_size=20,
            precision="fp32",
            evaluate=False,
            out=str(tmp_path),
            name=name,
        )
        return train(RunOptions.of(**{**options, **changes}), config=digits.config, report=silent)

    free, charged = run("free"), run("charged", charge_reference=True)
    per_step = free["regimes"]["foundation"] / free["steps"]
    assert 3e9 - per_step < free["regimes"]["foundation"] <= 3e9
    assert charged["regimes"]["nothing_amortised"] <= 3e9 < charged["regimes"]["nothing_amortised"] + per_step
    assert charged["steps"] < free["steps"]
