import json

import pytest
from support.commands import curate


def row(text, label):
    """The cells of the one line of a printed table that starts with `label`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {label} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


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
