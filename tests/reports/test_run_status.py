"""What `curate status` says of a run folder, whatever is written by then."""

from __future__ import annotations

import json

import pytest
from curate.reports.run_status import run_status
from support.commands import curate


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs/a"
    folder.mkdir(parents=True)
    put(folder / "config.json", {"policy": "learnability", "steps": 40})
    return folder


def put(path, *content):
    path.write_text("".join(json.dumps(line) + "\n" for line in content))


def line(step, **more):
    flops = {"learner_train": step * 1e12, "online_score": step * 1e11, "online_train": 0.0, "reference_score": 9e15}
    return {"step": step, "loss": 1.5, "seconds": {"train": 3.0 * step, "data": 1.0 * step}, "flops": flops, **more}


def test_before_the_first_line(run):
    status = run_status(str(run))
    assert (status.step, status.steps, status.finished, status.idle) == (0, 40, False, None)
    assert "learnability, step 0 of 40" in curate("status", run).out


def test_in_the_middle_with_a_torn_line(run):
    rates = {"samples_per_second": 1234.0, "mfu": 0.41, "data_share": 0.03}
    put(run / "metrics.jsonl", line(10, quality={"top1": 0.25, "test_examples": 100}), line(20, **rates))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": 1')
    status = run_status(str(run))
    assert (status.step, status.spent, status.quality) == (20, 22e12, {10: {"top1": 0.25, "test_examples": 100}})
    out = curate("status", run).out
    assert "step 20 of 40 (50 %), 22 TF spent, loss 1.5; not finished" in out
    assert "1,234 examples/s trained, mfu 41 %, 3.0 % of the time spent waiting for data" in out
    assert "80.0 s: train 75 %, data 25 %" in out
    assert "after step 10: top1 0.2500" in out and "last wrote 0 seconds ago" in out
    assert json.loads(curate("status", run, "--format", "json").out)["rates"] == rates


def test_finished(run):
    put(run / "metrics.jsonl", line(40))
    summary = {
        "steps": 40,
        "quality": {"top1": 0.5},
        "seconds": {"total": 9.0, "train": 8.0, "evaluate": 1.0, "wall": 20.0},
    }
    put(run / "summary.json", summary)
    status = run_status(str(run))
    assert (
        status.finished and status.quality == {40: {"top1": 0.5}} and status.seconds == {"train": 8.0, "evaluate": 1.0}
    )
    assert "last line" not in curate("status", run).out


def test_a_damaged_run_is_one_line(run):
    (run / "config.json").write_text("{")
    assert "config.json: is damaged" in curate("status", run).error


def saved(run, step):
    folder = run / f"checkpoints/resume-{step:09d}"
    folder.mkdir(parents=True)
    ledger = {"learner_train": step * 1e12, "online_score": 0.0, "online_train": None, "scored_in_run": 5e15}
    put(folder / "state.json", {"step": step, "ledger": ledger, "seconds": {"train": 2.0 * step}})


def test_a_models_folder_is_no_run(tmp_path):
    """timm's and transformers' folders have a config.json too, and so has a run's own model/."""
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    told = curate("status", tmp_path)
    assert told.code == 1 and f"{tmp_path}: is no run: its config.json is another program's" in told.error


def test_a_killed_run_is_where_its_newest_checkpoint_is(run):
    saved(run, 5)
    status = run_status(str(run))
    assert (status.step, status.loss, status.spent, status.seconds) == (5, None, 5e12, {"train": 10.0})
    assert status.idle is not None
    put(run / "metrics.jsonl", line(3), line(10))
    assert (run_status(str(run)).step, run_status(str(run)).spent) == (10, 11e12)
    saved(run, 15)
    assert "learnability, step 15 of 40 (38 %), 15 TF spent, loss 1.5; not finished" in curate("status", run).out
    (run / "checkpoints/resume-000000015/state.json").write_text("{")  # cut: a resume takes the one before
    assert run_status(str(run)).step == 10
