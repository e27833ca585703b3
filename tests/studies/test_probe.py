"""A probe on digits: what it runs, and what it refuses before it runs anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from curate.errors import SpecError, TableError
from curate.studies.options import PlanOptions, ProbeOptions
from curate.studies.probe import run_probe
from support.commands import silent

PLAN = {"dataset": "digits", "learner": "learner", "online": "scorer", "budget_flops": 4e10, "batch_size": 16}


def test_its_runs_are_pairs_at_a_share_of_the_budget(digits, tmp_path):
    plan = PlanOptions.of(**PLAN, reference_scores=digits.scores, filter_ratio=0.75, lr=1e-3)
    lines = []
    options = ProbeOptions(plan=plan, probe=0.05, seeds=1, out=str(tmp_path / "probe"))
    compared = run_probe(options, config=digits.config, report=lines.append)
    assert lines[0] == "probe: runs of 9 GF in all, 22.5% of the budget"
    configs = [json.loads(Path(options.out, "runs", name, "config.json").read_text()) for name in compared.runs]
    assert sorted((c["policy"], c["budget_flops"]) for c in configs) == [
        ("learnability", 2e9),
        ("uniform", 1e9),
        ("uniform", 2e9),
        ("uniform", 4e9),
    ]
    assert {(c["filter_ratio"], c["batch_size"], c["lr"]) for c in configs} == {(0.75, 16, 1e-3)}
    again = []
    run_probe(options, config=digits.config, report=again.append)
    assert "4 runs, 4 of them finished before" in again[1]


@pytest.mark.parametrize(
    ("plan", "share", "words"),
    [
        ({"ratio": 0.1}, 0.1, "instead of --ratio"),
        (PLAN, 0.1, "then --reference-scores"),
        ({**PLAN, "reference_scores": "T", "expected_saving": 0.2}, 0.1, "--probe and --expected-saving"),
        ({**PLAN, "reference_scores": "T"}, 0.0, "--probe is 0"),
    ],
)
def test_what_it_cannot_do_is_said_first(plan, share, words):
    with pytest.raises(SpecError, match=words):
        ProbeOptions(plan=PlanOptions.of(**plan), probe=share)


def test_uniform_always_runs_and_is_not_named():
    plan = PlanOptions.of(**PLAN, reference_scores="T")
    with pytest.raises(SpecError, match="beside uniform, which always runs"):
        ProbeOptions(plan=plan, probe=0.1, policies=("uniform", "filter"))
    assert ProbeOptions(plan=plan, probe=0.1, policies=("filter",)).comparison.policies == ("uniform", "filter")


def test_a_table_that_is_not_there_leaves_no_half_run(digits, tmp_path):
    plan = PlanOptions.of(**PLAN, reference_scores=str(tmp_path / "none"))
    with pytest.raises(TableError, match="none: no such folder"):
        run_probe(ProbeOptions(plan=plan, probe=0.05, out=str(tmp_path / "probe")), config=digits.config, report=silent)
    assert not list(tmp_path.glob("probe/runs/*learnability*"))
