"""What a probe says, on points whose answer is known, and of real runs."""

from __future__ import annotations

import json

import pytest
from curate.reports.probe import probe_lines, read_probe
from curate.studies.comparison import Compared
from support.commands import curate


def write_run(folder, policy, budget, quality, seed, reference=None):
    """A finished run whose update costs 1 FLOP."""
    run = folder / "runs" / f"{policy}-{budget:g}-{seed}"
    run.mkdir(parents=True)
    lines = {"learner_train": budget, "online_score": 0, "online_train": 0, "reference_score": 5, "reference_train": 5}
    regimes = dict.fromkeys(("fully_amortised", "foundation", "pretrained_reference", "nothing_amortised"), budget)
    summary = {
        "policy": policy,
        "seed": seed,
        "quality": {"top1": quality},
        "steps": budget,
        "regimes": regimes,
        "seconds": {"total": 1.0},
        "ledger": lines,
        **({} if reference is None else {"reference_quality": reference}),
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.json").write_text(json.dumps({"budget_flops": budget, "filter_ratio": 0.5, "lr": 1e-3}))
    return run.name


def probed(folder, reached, others=(), reference=None):
    names = [write_run(folder, "uniform", b, q, s) for b, q in ((50, 0.4), (100, 0.5), (200, 0.6)) for s in (0, 1)]
    names += [write_run(folder, "learnability", 100, q, s, reference) for s, q in enumerate(reached)]
    names += [write_run(folder, policy, 100, q, s) for policy, qs in others for s, q in enumerate(qs)]
    compared = Compared(
        runs=tuple(names), quality="top1", dataset="", budget_flops=100, learning_rates={1.0: 1e-3}, settings={}
    )
    return read_probe(str(folder), compared)


PLAN = {
    "budget": 1000.0,
    "regimes": {
        name: {"compute_saved": share}
        for name, share in (
            ("fully_amortised", 0.5),
            ("foundation", 0.2),
            ("pretrained_reference", 0.1),
            ("nothing_amortised", -0.1),
        )
    },
}


def test_a_saving_by_hand(tmp_path):
    probe = probed(tmp_path, (0.6, 0.6))
    assert probe.expected_saving == pytest.approx(0.5)
    assert probe.spent == 2 * (50 + 100 + 200 + 100)
    said = " ".join(probe_lines(probe, PLAN))
    assert "Probe at 10 % of the budget, n = 2 seeds, 90 % of it spent" in said
    assert "60.0 % with learnability, 50.0 % with uniform" in said
    assert "50 % fewer learner updates" in said
    assert "pays off in the regimes: fully amortised, foundation data set, pretrained reference." in said


def test_other_policies_are_told_beside_the_first(tmp_path):
    probe = probed(tmp_path, (0.6, 0.6), [("filter", (0.55, 0.55)), ("hard-learner", (0.3, 0.3))])
    assert (probe.policy, probe.expected_saving) == ("learnability", pytest.approx(0.5))
    assert probe.spent == 2 * (50 + 100 + 200 + 3 * 100)
    said = " ".join(probe_lines(probe, PLAN))
    assert "filter at the same FLOPs: 55.0 %; 29 % fewer" in said
    assert "hard-learner at the same FLOPs: 30.0 %; at least 100 % more" in said


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (0.45, "The reference has 45.0 % on the same test split, less than uniform here"),
        (0.55, "Where uniform passes that before the budget ends, expect less of choosing than here."),
        (None, ""),
    ],
)
def test_how_far_the_learner_is_from_its_reference(tmp_path, reference, words):
    probe = probed(tmp_path, (0.6, 0.6), reference=reference)
    assert probe.reference == reference  # uniform reaches 0.5
    said = " ".join(probe_lines(probe, PLAN))
    assert words in said and ("The reference has" in said) == (reference is not None)


@pytest.mark.parametrize(
    ("reached", "words"),
    [((0.6, 0.6), ""), ((0.7, 0.45), "the interval does not exclude 0"), ((0.6,), "one seed gives no interval")],
)
def test_a_gain_that_seeds_do_not_show_is_said(tmp_path, reached, words):
    probe = probed(tmp_path, reached)
    assert probe.saving.gained
    said = " ".join(probe_lines(probe, PLAN))
    assert ("No saving shown" in said) == bool(words) and words in said


@pytest.mark.parametrize(("reached", "words"), [((0.45, 0.45), "41 % more"), ((0.3, 0.3), "at least 100 % more")])
def test_harm_is_called_harm(tmp_path, reached, words):
    probe = probed(tmp_path, reached)
    assert probe.expected_saving is None
    said = " ".join(probe_lines(probe, PLAN))
    assert words in said and "Nothing was saved" in said


def test_off_the_ladder_is_a_bound(tmp_path):
    probe = probed(tmp_path, (0.9, 0.9))
    assert probe.expected_saving == pytest.approx(0.5)
    assert "more than 50 % fewer" in " ".join(probe_lines(probe, PLAN))


def test_the_command_on_digits(digits, tmp_path):
    done = curate(
        *("plan", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--online", "scorer"),
        *("--reference-scores", digits.scores, "--budget-flops", "40GF", "--batch-size", "16", "--probe", "5%"),
        *("--seeds", "1", "--out", tmp_path / "probe", "--format", "json", "--policies", "learnability,filter"),
    )
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert (values["probe"]["policy"], list(values["probe"]["others"])) == ("learnability", ["filter"])
    assert values["probe"]["budget"] == 2e9 and values["probe"]["seeds"] == 1
    share = values["probe"]["saving"]["share"]
    gained = share > 0 and values["probe"]["saving"]["where"] != "below"
    assert values["expected_saving"] == (share if gained else None)
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "probe" / "runs").glob("*/summary.json")]
    assert values["probe"]["spent"] == sum(summary["regimes"]["foundation"] for summary in summaries)
