"""What a run takes here: a measured step, what binds, and the numbers that follow."""

from __future__ import annotations

import json

import pytest
from curate.reports.plan import measured_lines
from curate.studies.measure import Measured, _per_step
from support.commands import curate


def measured(**changes):
    known = dict(
        steps=1000,
        step_seconds=0.5,
        stages={"data": 0.1, "score": 0.1, "train": 0.3},
        batch_size=32,
        super_batch=64,
        read_per_second=640.0,
        cores=2,
        device="cpu",
        disk_bytes=10**9,
        memory_bytes=2 * 10**9,
    )
    return Measured(**{**known, **changes})


def test_the_longest_stage_binds_where_reading_keeps_up():
    found = measured()
    assert (found.seconds, found.read_seconds, found.binds) == (500.0, 0.1, "train")
    assert found.cores_wanted == 1, "0.1 s of reading on two cores beside 0.4 s: a half of a core"
    told = measured_lines(found.to_dict())
    assert told[0].startswith(
        "\nMeasured here, on cpu, with --batch-size 32 (super-batch 64): 500.0 ms a step "
        "(train 300.0 ms, data 100.0 ms, score 100.0 ms)"
    )
    assert "on 2 cores, 100.0 ms for a step's 64 examples." in told[1] and told[2].endswith("keep up with 1 core.")
    assert "500 s" not in measured_lines(found.to_dict())[0] and "8 min" in measured_lines(found.to_dict())[0]


def test_reading_binds_where_it_takes_longer_than_all_else():
    found = measured(read_per_second=64.0)
    assert found.binds == "reading"
    assert found.cores_wanted == 5, "1 s on two cores has to become 0.4 s"
    assert any("Reading is the bottleneck: 5 such cores" in line for line in measured_lines(found.to_dict()))


def test_the_first_steps_are_not_counted():
    lines = [(step, {"total": 9.0, "compile": 5.0, "train": 10.0 + (step - 4) * 0.25}) for step in range(1, 13)]
    assert _per_step(lines) == {"train": pytest.approx(0.25)}


def test_a_plan_measures_the_run_of_its_options(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("curate.studies.measure.READ_SECONDS", 0.05)
    asked = ("plan", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--online", "scorer")
    asked = (*asked, "--budget-flops", "2e9", "--batch-size", 16, "--measure", "--format", "json")
    done = curate(*asked)
    assert done.code == 0, done.err
    content = json.loads(done.out)
    found = content["measured"]
    assert found["steps"] == content["updates"]
    assert found["seconds"] == pytest.approx(found["steps"] * sum(found["stages"].values()))
    assert {"data", "score", "select", "train"} <= set(found["stages"])
    assert found["super_batch"] == 32 and found["read_per_second"] > 0
    assert found["disk_bytes"] > 36 * 32 * (found["steps"] - 1), "selections alone"
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_a_bare_ratio_cannot_be_measured():
    done = curate("plan", "--ratio", "1/49", "--measure")
    assert done.code == 1 and "--measure makes steps of a run" in done.error
