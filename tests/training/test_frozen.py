"""A run goes on with what it began with, or is refused in one line that says what is another."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from curate.datasets import writing
from curate.errors import RunError
from curate.scoring.loading import find_model, load_model, save_weights
from curate.training import frozen
from support.tiny import MODELS, CutError, go, go_until, options_of, shard, weights, write_toml

WEIGHTS = f'{MODELS}weights = "start.safetensors"\n'


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run that was killed after step 5, its last checkpoint that of step 4."""
    root = tmp_path_factory.mktemp("cut")
    shard(root / "a.tar", range(64))
    shard(root / "test.tar", range(500, 520))
    write_toml(root, test="test.tar")
    spec = find_model("learner", task="classification", num_classes=10, config=_config(root))
    save_weights(load_model(spec).module, root / "start.safetensors")
    write_toml(root, WEIGHTS, test="test.tar")
    go_until(5, root, evaluate=True)
    return root


def _config(root):
    from curate.datasets.spec import load_config

    return load_config(root / "curate.toml")


@pytest.fixture
def work(cut, tmp_path):
    shutil.copytree(cut, tmp_path / "work")
    return tmp_path / "work"


def other_shard(root):
    shard(root / "b.tar", range(64, 128))
    write_toml(root, WEIGHTS, train="b.tar", test="test.tar")


def one_more_shard(root):
    shard(root / "b.tar", range(64, 128))
    write_toml(root, WEIGHTS, train=["a.tar", "b.tar"], test="test.tar")


def other_labels_in_as_many_bytes(root):
    size = (root / "a.tar").stat().st_size
    shard(root / "a.tar", range(64), label=3)
    assert (root / "a.tar").stat().st_size == size


def other_weights_under_the_same_path(root):
    spec = find_model("learner", task="classification", num_classes=10, config=_config(root))
    shutil.move(root / "start.safetensors", root / "before.safetensors")
    fresh = load_model(type(spec)(**{**spec.to_dict(), "weights": ""}), seed=7)
    save_weights(fresh.module, root / "start.safetensors")


def another_name(root):
    shutil.move(root / "a.tar", root / "c.tar")
    write_toml(root, WEIGHTS, train="c.tar", test="test.tar")


CHANGES = {
    "another name": (
        another_name,
        r"train shards: 1 of ([\d,]+) bytes \(list \w+\), now 1 of \1 bytes \(list \w+\): other names, or other sizes",
    ),
    "another shard": (other_shard, r"train shards: 1 of [\d,]+ bytes \(list \w+\), now 1 of [\d,]+ bytes \(list \w+\)"),
    "one more shard": (one_more_shard, r"train shards: 1 of [\d,]+ bytes \(list \w+\), now 2 of"),
    "other labels": (
        other_labels_in_as_many_bytes,
        r"train shards: content \w+, now content \w+: names and sizes are the same, what the files hold is not",
    ),
    "another test split": (lambda root: shard(root / "test.tar", range(520, 545)), r"test shards: 1 of .* now 1 of"),
    "preprocessing": (
        lambda root: write_toml(root, WEIGHTS.replace("size = 8", "size = 12"), test="test.tar"),
        r"model learner\.preprocessing\.size = 8, now 12",
    ),
    "weights": (other_weights_under_the_same_path, r"weights of learner = \w+, now \w+"),
    "classes": (
        lambda root: write_toml(root, WEIGHTS, test="test.tar", classes=[f"class {i}" for i in range(10)]),
        r"data set: classes = .*, now ",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_resume_with_something_else_is_refused_and_changes_nothing(work, change):
    make, told = CHANGES[change]
    before = {p: p.read_bytes() for p in sorted((work / "runs").rglob("*")) if p.is_file() and p.name != "log.txt"}
    make(work)
    with pytest.raises(
        RunError, match=rf"run: began with {told}.*; restore what it began with, or begin another run"
    ) as e:
        go(work, resume=True, evaluate=True)
    assert "\n" not in str(e.value)
    assert {p: p.read_bytes() for p in before} == before


def test_the_same_content_elsewhere_is_the_same(cut, work):
    """Copied to another folder, with other times, and named by another pattern."""
    (work / "moved").mkdir()
    shutil.copy(work / "a.tar", work / "moved/a.tar")
    os.utime(work / "moved/a.tar", (1, 1))
    write_toml(work, WEIGHTS, train="moved/*.tar", test="test.tar")
    summary = go(work, resume=True, evaluate=True)
    shutil.copytree(cut, work / "undisturbed")
    shutil.rmtree(work / "undisturbed/runs")
    assert go(work / "undisturbed", evaluate=True)["quality"] == summary["quality"]
    assert weights(work / "undisturbed") == weights(work)


def test_other_steps_and_another_cost_of_a_step_are_refused(work):
    manifest = json.loads((work / "runs/run/manifest.json").read_text())
    for name, value, told in (
        ("steps", 13, "steps = 13, now 12"),
        ("settings", {"learner lr": 0.5}, r"learner lr = 0\.5, now 0\.002"),
    ):
        changed = {**manifest, "began": {**manifest["began"], name: value}}
        (work / "runs/run/manifest.json").write_text(json.dumps(changed))
        with pytest.raises(RunError, match=f"began with {told}"):
            go(work, resume=True, evaluate=True)
    changed = {**manifest, "flops_per_step": {**manifest["flops_per_step"], "learner_train": 1.0}}
    (work / "runs/run/manifest.json").write_text(json.dumps(changed))
    with pytest.raises(RunError, match=r"began with FLOPs of a step: learner_train = 1\.0, now "):
        go(work, resume=True, evaluate=True)


def test_other_versions_are_said(work):
    path = work / "runs/run/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "1.2.3"
    path.write_text(json.dumps(manifest))
    told = []
    go(work, resume=True, report=told.append, evaluate=True)
    assert any("began with torch 1.2.3, now " in line for line in told)


def test_the_precision_of_a_run_stays_where_nobody_names_one(work, monkeypatch):
    with pytest.raises(RunError, match="was started with precision = fp32, now bf16"):
        go(work, resume=True, evaluate=True, precision="bf16")
    config = json.loads((work / "runs/run/config.json").read_text())
    (work / "runs/run/config.json").write_text(json.dumps({**config, "precision": None}))
    with pytest.raises(RunError, match="was started with precision = fp32, now bf16"):
        go(work, resume=True, evaluate=True, precision="bf16")
    monkeypatch.setattr("curate.training.folder.best_precision", lambda device: "bf16")
    told = []
    go(work, resume=True, report=told.append, evaluate=True, precision=None)
    assert any("in fp32" in line for line in told)


def test_a_run_without_a_record_of_its_beginning_goes_on(work):
    """Begun by an older version: what it did not write is not compared."""
    manifest = json.loads((work / "runs/run/manifest.json").read_text())
    del manifest["began"]
    (work / "runs/run/manifest.json").write_text(json.dumps(manifest))
    assert go(work, resume=True, evaluate=True)["steps"] == 12


def test_a_resume_deletes_nothing_when_the_data_cannot_be_listed(tmp_path):
    """Killed before its first line of metrics, which is how a run looks that was never trained."""
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    go_until(1, tmp_path, log_every=5)
    run = tmp_path / "runs/run"
    assert not (run / "metrics.jsonl").exists()
    (tmp_path / "a.tar").rename(tmp_path / "away.tar")
    with pytest.raises(Exception, match=r"no shard matches|missing"):
        go(tmp_path, resume=True, log_every=5)
    assert (run / "config.json").exists() and (run / "log.txt").exists()
    (tmp_path / "away.tar").rename(tmp_path / "a.tar")
    assert go(tmp_path, resume=True, log_every=5)["steps"] == 12


def test_a_table_that_grew_or_is_another_is_refused(digits, tmp_path):
    """With --on-missing skip more scores are other examples."""
    from curate.training import run, train
    from curate.training.loop import train_loop
    from support.commands import silent

    scores = tmp_path / "scores"
    shutil.copytree(digits.table, scores)
    (scores / "00002.parquet").rename(tmp_path / "00002.parquet")
    options = options_of(
        tmp_path, dataset="digits", policy="easy-reference", reference_scores=str(scores), on_missing="skip"
    )

    def after_step(step):
        if step == 5:
            raise CutError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutError):
        patch.setattr(run, "train_loop", lambda job: train_loop(job, after_step))
        train(options, config=digits.config, report=silent)
    (tmp_path / "00002.parquet").rename(scores / "00002.parquet")
    with pytest.raises(RunError, match=r"began with score table: shards = 5, now 6"):
        train(options, config=digits.config, resume=True, report=silent)
    (scores / "00002.parquet").unlink()
    manifest = json.loads((scores / "_manifest.json").read_text())
    (scores / "_manifest.json").write_text(json.dumps({**manifest, "precision": "bf16"}))
    with pytest.raises(RunError, match=r"began with score table: precision = fp32, now bf16"):
        train(options, config=digits.config, resume=True, report=silent)
    (scores / "_manifest.json").write_text(json.dumps(manifest))
    # The same table elsewhere: a folder above is the name of none once it holds the tables of two data sets.
    moved = scores.rename(tmp_path / "moved")
    elsewhere = options.but(reference_scores=str(moved))
    assert train(elsewhere, config=digits.config, resume=True, report=silent)["steps"] == 12


def test_large_data_is_known_by_the_stores_versions(tmp_path, monkeypatch):
    from curate.datasets.shards import list_shards
    from curate.datasets.spec import spec_from_table

    shard(tmp_path / "a.tar", range(8))
    shards = list_shards(spec_from_table("d", {"train": str(tmp_path / "a.tar"), "classes": 10}))
    small = frozen.shards_of(shards)
    assert small["content"] and small["written"] is None
    monkeypatch.setattr(frozen, "CONTENT_BYTES", 1)
    before = {"began": {"train": frozen.shards_of(shards)}}
    assert before["began"]["train"]["content"] is None
    os.utime(tmp_path / "a.tar", (1, 1))
    touched = {"began": {"train": frozen.shards_of(shards)}}
    assert frozen.refused(before, touched) == []
    assert "written at another time" in frozen.said(before, touched)[0]
    monkeypatch.setattr(frozen, "version_of", lambda url: ("an-etag", 1.0))
    tagged = {"began": {"train": frozen.shards_of(shards)}}
    monkeypatch.setattr(frozen, "version_of", lambda url: ("another", 1.0))
    assert "versions" in frozen.refused(tagged, {"began": {"train": frozen.shards_of(shards)}})[0]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)

    def no_locks(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(writing.fcntl, "flock", no_locks)
    told = []
    go(tmp_path, report=told.append)
    assert "this file system has no locks (No locks available)" in told[0]


def test_a_run_killed_before_its_config_was_written_begins_anew(tmp_path):
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    (tmp_path / "runs/run").mkdir(parents=True)
    (tmp_path / "runs/run/manifest.json").write_text(json.dumps({"began": {"steps": 99}}))
    assert go(tmp_path)["steps"] == 12
    assert json.loads((tmp_path / "runs/run/manifest.json").read_text())["began"]["steps"] == 12
