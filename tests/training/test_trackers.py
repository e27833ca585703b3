"""Trackers: what they are sent, that a resumed run continues its own, and that only opening one may fail a run."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from curate.errors import RunError, SpecError
from curate.training import trackers
from curate.training.trackers import IDS, OPENERS, grid
from support.tiny import go, go_until, shard, write_toml

CHOOSING = {"policy": "hard-learner", "online": "learner", "filter_ratio": 0.5, "log_every": 2, "batch_size": 8}


@pytest.fixture
def folder(tmp_path):
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    return tmp_path


def lines(folder):
    return [json.loads(line) for line in (folder / "runs/run/metrics.jsonl").read_text().splitlines()]


def events(folder):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    every = {"scalars": 0, "histograms": 0, "images": 0}
    found = reading.EventAccumulator(str(folder / "runs/run/tensorboard"), size_guidance=every)
    found.Reload()
    return found


def test_tensorboard_has_the_lines_the_scores_and_the_images(folder):
    pytest.importorskip("tensorboard")
    summary = go(folder, report_to=("tensorboard",), **CHOOSING)
    found, written = events(folder), lines(folder)
    for name, key in (("train/loss", "loss"), ("train/lr", "lr")):
        assert [(e.step, e.value) for e in found.Scalars(name)] == [
            (line["step"], pytest.approx(line[key], rel=1e-6)) for line in written
        ]
    spent = [e.value for e in found.Scalars("flops/online_score")]
    assert spent == pytest.approx([line["flops"]["online_score"] for line in written])
    assert found.Scalars("regimes/foundation")[-1].value == pytest.approx(summary["regimes"]["foundation"])
    assert {f"seconds/{stage}" for stage in ("data", "score", "select", "train")} <= set(found.Tags()["scalars"])
    histograms = found.Histograms("scores/all")
    assert [e.step for e in histograms] == [line["step"] for line in written]
    assert histograms[-1].histogram_value.num == 16 and found.Histograms("scores/selected")[-1].histogram_value.num == 8
    total = histograms[0].histogram_value.sum / 16
    assert total == pytest.approx(written[0]["score"], rel=1e-4)
    assert [e.step for e in found.Images("examples/kept")] == [2, 4, 8]
    assert [e.step for e in found.Images("examples/dropped")] == [2, 4, 8]


def test_a_resumed_run_continues_its_own_events(folder):
    pytest.importorskip("tensorboard")
    go_until(7, folder, report_to=("tensorboard",), **CHOOSING)
    go(folder, resume=True, report_to=("tensorboard",), **CHOOSING)
    found = events(folder)
    steps = [e.step for e in found.Scalars("train/loss")]
    assert steps == [2, 4, 6, 8, 10, 12], (
        "step 6 was written before the checkpoint of step 4 was resumed, and again after"
    )
    assert [e.value for e in found.Scalars("train/loss")] == pytest.approx([line["loss"] for line in lines(folder)])


class Wandb(SimpleNamespace):
    """The part of wandb's interface that is used, recording its calls."""

    def __init__(self):
        super().__init__(begun=[], logged=[], closed=0)
        self.Image = self.Histogram = lambda values, **settings: np.asarray(values).shape

    def init(self, **settings):
        self.begun.append(settings)
        return SimpleNamespace(id=settings["id"] or "abc123")

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.closed += 1


def test_wandb_gets_the_same_run_again_without_secrets(folder, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    go_until(7, folder, report_to=("wandb",), **CHOOSING)
    go(folder, resume=True, report_to=("wandb",), **CHOOSING)
    first, second = wandb.begun
    assert (first["id"], second["id"]) == (None, "abc123")
    assert first["resume"] == "allow" and first["name"] == "run" and first["config"]["policy"] == "hard-learner"
    assert json.loads((folder / "runs/run" / IDS).read_text()) == {"wandb": "abc123"}
    steps = Counter(step for step, values in wandb.logged if "train/loss" in values)
    assert steps == Counter([2, 4, 6, 6, 8, 10, 12])
    assert wandb.closed == 2


def test_wandb_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    go_until(7, folder, report_to=("wandb",), **CHOOSING)
    go(folder, resume=True, report_to=("wandb",), **CHOOSING)
    begun = [path.name for path in (folder / "runs/run/wandb").glob("offline-run-*")]
    ids = {name.rsplit("-", 1)[-1] for name in begun}
    assert ids == {json.loads((folder / "runs/run" / IDS).read_text())["wandb"]}


def test_trackio_keeps_both_of_a_step_that_is_made_again(folder, monkeypatch):
    """docs/outputs.md says so."""
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    pytest.importorskip("trackio")
    go_until(7, folder, report_to=("trackio",), **CHOOSING)
    go(folder, resume=True, report_to=("trackio",), **CHOOSING)
    with sqlite3.connect(folder / "trackio/curate.db") as stored:
        rows = stored.execute("SELECT step, metrics FROM metrics").fetchall()
    steps = Counter(step for step, values in rows if "train/loss" in json.loads(values))
    assert steps == Counter([2, 4, 6, 6, 8, 10, 12])


class Broken:
    def __init__(self, *_):
        pass

    def __getattr__(self, name):
        raise OSError("the server is away")


def test_logging_never_fails_a_run_and_says_so_once(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    monkeypatch.setitem(OPENERS, "trackio", Broken)
    said = []
    summary = go(folder, report=said.append, report_to=("trackio",), **CHOOSING)
    assert summary["steps"] == 12
    assert [line for line in said if "server is away" in line] == ["trackio: the server is away; the run continues"]


def test_a_tracker_that_cannot_be_opened_ends_the_run_before_step_1(folder, monkeypatch):
    def refuse(*_):
        raise OSError("no such project")

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    monkeypatch.setitem(OPENERS, "trackio", refuse)
    with pytest.raises(RunError, match=r"--report-to trackio: cannot be opened .no such project"):
        go(folder, report_to=("trackio",), **CHOOSING)
    assert not (folder / "runs/run/metrics.jsonl").exists()


def test_a_missing_package_is_named_before_anything_is_made(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(SpecError, match=r"needs the package trackio .*pip install trackio"):
        go(folder, report_to=("trackio",), **CHOOSING)
    assert not (folder / "runs/run").exists()


def test_an_unknown_tracker_is_refused(folder):
    with pytest.raises(SpecError, match="expected tensorboard, wandb, trackio, or several; did you mean 'wandb'"):
        go(folder, report_to=("wanbd",))


def test_without_trackers_nothing_is_imported_or_written(folder, monkeypatch):
    monkeypatch.setattr(trackers, "_imported", lambda *_: pytest.fail("imported"))
    go(folder, **CHOOSING)
    assert not (folder / "runs/run/tensorboard").exists() and not (folder / "runs/run" / IDS).exists()


@pytest.mark.parametrize(
    ("images", "side", "shape"), [(1, 8, (34, 34, 3)), (16, 64, (132, 528, 3)), (9, 40, (84, 336, 3))]
)
def test_a_sheet_is_rows_of_eight(images, side, shape):
    pixels = np.arange(images, dtype=np.uint8)[:, None, None, None] * np.ones((1, side, side, 3), np.uint8)
    sheet = grid(pixels)
    assert sheet.shape == shape
    assert set(np.unique(sheet)) == {*range(images), 255}
