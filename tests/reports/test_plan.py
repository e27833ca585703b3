import io
import json
import re

import pytest
from curate.ledger import StepCost
from curate.reports.plan import write_plan
from curate.studies.planned import Plan
from support.commands import curate


def row(text, label):
    """The cells of the one line of a printed table that starts with `label`."""
    (line,) = [line for line in text.splitlines() if re.match(rf" ?{label} (\*| )", line)]
    return re.split(r" {2,}", line.strip())


def test_a_bare_ratio():
    done = curate("plan", "--ratio", "1/49")
    assert done.code == 0 and done.err == ""
    assert row(done.out, "fully amortised")[-1] == "0.0 %"
    assert row(done.out, "foundation data set")[-1] == "3.3 %"
    assert row(done.out, "pretrained reference")[-1] == "4.5 %"
    assert row(done.out, "nothing amortised")[-1] == "6.5 %"
    assert row(done.out, "online score")[-1] == "1.3 %"
    assert "Scoring takes 1.3 % of the budget, 3.3 % with" in done.out


def test_expected_saving_names_the_factor_of_a_size():
    done = curate("plan", "--ratio", "1/3.5", "--expected-saving", "25%")
    assert row(done.out, "fully amortised")[-2:] == ["any", "0"]
    assert row(done.out, "foundation data set")[-2:] == ["1/5", "1"]
    assert row(done.out, "nothing amortised")[-2:] == ["1/11", "1"]
    assert "25.0 % fewer" in done.out and "a factor of 3.7 in FLOPs" in done.out


@pytest.mark.parametrize("columns", ["80", "40"])
def test_nothing_of_a_table_is_cut(columns, monkeypatch):
    """All columns at once, in a terminal of any width; at 80 columns they fit."""
    monkeypatch.setenv("COLUMNS", columns)
    plan = Plan(
        ratio=1 / 49,
        filter_ratio=0.5,
        step=StepCost(learner_train=9e8, online_score=1e7, online_train=2e7),
        uniform_steps=1_234_567,
        steps=1_200_000,
        expected_saving=0.25,
        budget=1.1e15,
    )
    printed = io.StringIO()
    write_plan(plan.to_dict(), file=printed)
    assert "…" not in printed.getvalue()
    found = row(printed.getvalue(), "nothing amortised")
    assert found == ["nothing amortised", "101.5 %", "3.2 %", "1,194,742", "22.5 %", "1/4.9", "0"]
    assert max(len(line) for line in printed.getvalue().splitlines() if re.match(" ?(nothing|online|─)", line)) <= 80


def test_a_scorer_that_never_pays():
    assert row(curate("plan", "--ratio", "2").out, "nothing amortised")[-1] == "never"


def test_real_models(digits):
    done = curate(
        *("plan", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--online", "scorer"),
        *("--reference-scores", digits.scores, "--budget-flops", "4.2GF", "--batch-size", "16", "--runs", "3"),
    )
    assert done.code == 0, done.err
    assert "4.2 GF pays for 100 learner updates with selection, 112 drawn uniformly" in done.out
    assert row(done.out, "learner train")[1:] == ["3.72 GF", "88.5 %"]
    assert row(done.out, "foundation data set")[-2:] == ["11.3 %", "99"]
    assert "shared by 3 runs" in done.out and str(digits.table) in done.out
    assert "zero FLOPs" not in done.out  # norms, activations and the like are not worth a line


def test_json():
    done = curate("plan", "--ratio", "1/49", "--format", "json")
    values = json.loads(done.out)
    assert values["regimes"]["foundation"]["break_even"] == pytest.approx(5 / 152)
    lines = ["learner_train", "online_score", "online_train", "reference_score", "reference_train"]
    assert list(values["ledger"]) == lines


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ratio", "1/49", "--format", "csv"], "--format is 'csv'"),
        (["--ratio", "none"], "--ratio is 'none'"),
        (["--ratio", "1/49", "--expected-saving", "much"], "--expected-saving is 'much'"),
        ([], "nothing to plan"),
    ],
)
def test_one_line_for_bad_input(options, words):
    done = curate("plan", *options)
    assert done.code == 1 and words in done.error and done.out == ""
