"""A probe on digits: what it runs, and what it refuses before it runs anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from curate.errors import SpecError, TableError
from curate.reports.probe import probe_lines, read_probe
from curate.studies.options import PlanOptions, ProbeOptions
from curate.studies.probe import curated_names, run_probe
from support.commands import silent

PLAN = {"dataset": "digits", "learner": "learner", "online": "scorer", "budget_flops": 4e10, "batch_size": 16}


def test_its_runs_are_pairs_at_a_share_of_the_budget(digits, tmp_path):
    plan = PlanOptions.of(**PLAN, reference_scores=digits.scores, filter_ratio=0.75, lr=1e-3)
    lines = []
    options = ProbeOptions(plan=plan, probe=0.05, seeds=1, out=str(tmp_path / "probe"))
    compared = run_probe(options, config=digits.config, report=lines.append)
    assert lines[0] == "probe: runs of 9 GF in all, 22.5 % of the budget"
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


def test_curated_examples_alone_and_in_every_batch(digits, tmp_path):
    plan = PlanOptions.of(**PLAN, reference_scores=digits.scores, filter_ratio=0.75, lr=1e-3)
    options = ProbeOptions(plan=plan, probe=0.05, seeds=1, curated="digits-curated", out=str(tmp_path / "probe"))
    lines = []
    compared = run_probe(options, config=digits.config, report=lines.append)
    assert lines[0] == "probe: runs of 13 GF in all, 32.5 % of the budget"
    about = {
        name: json.loads(Path(options.out, "runs", name, "config.json").read_text())
        for names in curated_names(options).values()
        for name in names
    }
    assert {(c["policy"], c["dataset"], c["mix"], c["budget_flops"], c["lr"]) for c in about.values()} == {
        ("uniform", "digits-curated", None, 2e9, 1e-3),
        ("uniform", "digits", "digits-curated:50%", 2e9, 1e-3),
    }
    probe = read_probe(options.out, compared, curated_names(options))
    assert probe.spent == pytest.approx(13e9, rel=0.05)
    said = probe_lines(probe, {"budget": 4e10, "regimes": {}})
    assert any(line.startswith("uniform, digits-curated alone, at the same FLOPs: ") for line in said)
    assert any(line.startswith("Best here: ") and line.endswith("by one seed.") for line in said)
    again = []
    run_probe(options, config=digits.config, report=again.append)
    assert any("curated-alone-1x-seed0" in line for line in lines)
    assert not any("curated-" in line for line in again)  # no run was made again


def test_curated_examples_of_another_kind_are_refused(digits, tmp_path):
    plan = PlanOptions.of(**PLAN, reference_scores=digits.scores)
    with pytest.raises(SpecError, match="--curated is 'digits', the data set itself"):
        ProbeOptions(plan=plan, probe=0.1, curated="digits")
    mixed = PlanOptions.of(**PLAN, reference_scores=digits.scores, mix="digits-curated:50%")
    with pytest.raises(SpecError, match="leave --mix out"):
        ProbeOptions(plan=mixed, probe=0.1, curated="digits-curated")
    entry = {**digits.config.datasets["digits-curated"], "image": "jpg"}
    config = replace(digits.config, datasets={**digits.config.datasets, "other": entry})
    options = ProbeOptions(plan=plan, probe=0.1, curated="other", out=str(tmp_path / "probe"))
    with pytest.raises(SpecError, match="'other' has other fields or classes than 'digits'"):
        run_probe(options, config=config, report=silent)
    path = ProbeOptions(plan=plan, probe=0.1, curated=f"{digits.root}/data/digits/curated/*.tar", out=options.out)
    with pytest.raises(SpecError, match="expected the name of a data set; add it to curate"):
        run_probe(path, config=digits.config, report=silent)
    assert not (tmp_path / "probe").exists()


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
