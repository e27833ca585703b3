"""A run that was killed and resumed ends with the very bytes of an undisturbed one."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from curate.errors import DivergedError, WriteError
from curate.training import RunOptions, checkpoint, train
from curate.training.trainee import Trainee
from support.commands import silent, start_curate
from support.disk import files_up_to
from support.runs import left_by
from support.tiny import CutError, cut_after, go, go_until, shard, weights, write_toml

STEPS = 80
SECONDS = 180  # on a machine whose cores others use
pytestmark = pytest.mark.timeout(3 * SECONDS)


def assert_equal(left, right, told):
    """Part by part, so that a failure says which differs, not a megabyte of weights."""
    assert left["weights"].keys() == right["weights"].keys() == {"learner.safetensors", "online.safetensors"}, told
    assert [r["step"] for r in left["metrics"]] == [r["step"] for r in right["metrics"]], told
    for a, b in zip(left["metrics"], right["metrics"], strict=True):
        assert a == b, told
    assert len(left["selections"]) == len(right["selections"]), told
    for a, b in zip(left["selections"], right["selections"], strict=True):
        assert a == b, told
    assert left["summary"] == right["summary"], told
    for name, content in left["weights"].items():
        assert content == right["weights"][name], f"{name}: {told}"


def command(digits, out, *more):
    return (
        *("train", "--config", digits.toml, "--dataset", "digits", "--policy", "learnability"),
        *("--learner", "learner", "--online", "scorer", "--reference-scores", digits.table),
        *("--steps", STEPS, "--batch-size", 32, "--checkpoint-every", 5, "--log-every", 1),
        *("--precision", "fp32", "--out", out, "--name", "run", *more),
    )


def last_step(folder):
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    return len(lines)


def killed_at(digits, out, step, *more):
    """Start (or resume) a run, kill it once `step` is logged, and say which step was logged last."""
    process = start_curate(*command(digits, out, *more))
    deadline = time.monotonic() + SECONDS
    while last_step(out / "run") < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return last_step(out / "run")


def finished(digits, out, *more):
    assert start_curate(*command(digits, out, *more)).wait(timeout=SECONDS) == 0
    return left_by(out / "run")


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    found = finished(digits, tmp_path_factory.mktemp("undisturbed"))
    assert len(found["metrics"]) == STEPS
    assert len(found["selections"]) == STEPS * 64
    return found


def test_killed_with_9_and_resumed(digits, tmp_path, undisturbed):
    seed = int.from_bytes(os.urandom(4), "little")
    step = random.Random(seed).randint(6, 60)
    killed = killed_at(digits, tmp_path, step)
    told = f"seed {seed}: killed when {step} was wanted and {killed} logged"
    assert step <= killed < STEPS, told
    kept = sorted(p.name for p in (tmp_path / "run/checkpoints").glob("resume-*"))
    assert kept, told
    assert_equal(finished(digits, tmp_path, "--resume"), undisturbed, told)
    log = (tmp_path / "run/log.txt").read_text()
    assert "resumed after step" in log, told


def test_killed_twice_once_before_the_first_checkpoint(digits, tmp_path, undisturbed):
    seed = int.from_bytes(os.urandom(4), "little")
    random_step = random.Random(seed)
    first = killed_at(digits, tmp_path, random_step.randint(1, 4))
    second = killed_at(digits, tmp_path, random_step.randint(20, 60), "--resume")
    told = f"seed {seed}: killed at {first} and {second}"
    assert_equal(finished(digits, tmp_path, "--resume"), undisturbed, told)


def options_for(digits, out, **changes):
    return digits.run_options(out, **{"steps": 40, "batch_size": 32, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"host_bytes": 1},  # every shard a window of its own, and lanes that drift apart
        {"host_bytes": 1, "cache_bytes": 0},
        {"host_bytes": 500_000, "policy": "rho", "online": None},
        {"optimizer": "sgd", "lr": 0.05, "sampler": "topk", "batch_size": 40, "lanes": 4},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_windows_lanes_and_caches_come_back(digits, tmp_path, changes):
    train(options_for(digits, tmp_path / "whole", **changes), config=digits.config, report=silent)
    whole = left_by(tmp_path / "whole/run")
    options = options_for(digits, tmp_path / "cut", **changes)
    # An epoch is 14 steps: before the first checkpoint; in the middle of the first epoch; of the second.
    for stop in (4, 12, 23):
        with cut_after(stop):
            train(options, config=digits.config, resume=stop > 4, report=silent)
    train(options, config=digits.config, resume=True, report=silent)
    cut = left_by(tmp_path / "cut/run")
    for name in cut["weights"]:
        assert cut["weights"][name] == whole["weights"][name], name
    assert cut["metrics"] == whole["metrics"]
    assert cut["selections"] == whole["selections"]
    assert cut["summary"] == whole["summary"]


def test_what_may_change_at_a_resume_and_what_may_not(digits, tmp_path):
    train(options_for(digits, tmp_path / "whole"), config=digits.config, report=silent)
    with cut_after(20):
        train(options_for(digits, tmp_path / "cut"), config=digits.config, report=silent)
    with pytest.raises(Exception, match=r"was started with lr = None, now 0\.01"):
        train(options_for(digits, tmp_path / "cut", lr=0.01), config=digits.config, resume=True, report=silent)
    other = options_for(digits, tmp_path / "cut", checkpoint_every=11, cache_bytes=0)
    train(other, config=digits.config, resume=True, report=silent)
    assert left_by(tmp_path / "cut/run") == left_by(tmp_path / "whole/run")


def test_a_power_cut_between_the_selections_and_their_checkpoint(digits, tmp_path, monkeypatch):
    train(options_for(digits, tmp_path / "whole"), config=digits.config, report=silent)
    save = checkpoint.save

    def save_or_stop(run_folder, step, *more):
        if step == 15:
            raise CutError
        save(run_folder, step, *more)

    monkeypatch.setattr(checkpoint, "save", save_or_stop)
    with pytest.raises(CutError):
        train(options_for(digits, tmp_path / "cut"), config=digits.config, report=silent)
    assert "000000011-000000015.parquet" in {p.name for p in (tmp_path / "cut/run/selections").iterdir()}
    monkeypatch.setattr(checkpoint, "save", save)
    other = options_for(digits, tmp_path / "cut", checkpoint_every=13)
    train(other, config=digits.config, resume=True, report=silent)
    assert left_by(tmp_path / "cut/run") == left_by(tmp_path / "whole/run")


def test_a_checkpoint_half_written_is_never_taken(digits, tmp_path):
    train(options_for(digits, tmp_path / "whole"), config=digits.config, report=silent)
    with cut_after(20):
        train(options_for(digits, tmp_path / "cut"), config=digits.config, report=silent)
    checkpoints = tmp_path / "cut/run/checkpoints"
    standing = sorted(checkpoints.glob("resume-*"))
    partial = checkpoints / ".resume-000000021.0a1b2c3d.partial"
    partial.mkdir()
    (partial / "state.json").write_text('{"step": 21')
    with (tmp_path / "cut/run/metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": 0.1, "seconds": {"data": 0.1}')  # cut in the middle of a line, after a brace
    assert [folder.name for folder in standing] == ["resume-000000015", "resume-000000020"]
    train(options_for(digits, tmp_path / "cut"), config=digits.config, resume=True, report=silent)
    left = left_by(tmp_path / "cut/run")
    assert left["metrics"] == left_by(tmp_path / "whole/run")["metrics"]
    # The weights are all that a finished run keeps of its checkpoints.
    assert set(left["weights"]) == {"learner.safetensors", "online.safetensors"}


def test_a_disk_that_fills_up_in_a_checkpoint_is_one_line_and_the_run_resumes(digits, tmp_path, monkeypatch):
    train(options_for(digits, tmp_path / "whole"), config=digits.config, report=silent)
    save, told = checkpoint.save, []

    def save_with_no_room(run, step, *state):
        with files_up_to(4096) if step > 15 else nullcontext():
            save(run, step, *state)

    monkeypatch.setattr(checkpoint, "save", save_with_no_room)
    with pytest.raises(WriteError, match=r"cannot be written \(File too large\); free space"):
        train(options_for(digits, tmp_path / "cut"), config=digits.config, report=told.append)
    assert not any("--resume" in line for line in told)
    assert (tmp_path / "cut/run/log.txt").read_text().endswith("--resume continues from the last checkpoint\n")
    left = sorted(p.name for p in (tmp_path / "cut/run/checkpoints").iterdir())
    assert left == ["resume-000000010", "resume-000000015"]
    monkeypatch.setattr(checkpoint, "save", save)
    train(options_for(digits, tmp_path / "cut"), config=digits.config, resume=True, report=silent)
    assert left_by(tmp_path / "cut/run") == left_by(tmp_path / "whole/run")


def test_a_disk_that_is_full_at_the_last_step_hides_nothing(digits, tmp_path, monkeypatch):
    """The log cannot be written either; what is told is what happened first."""

    def fails(*state):
        (tmp_path / "cut/run/log.txt").unlink()
        (tmp_path / "cut/run/log.txt").mkdir()
        raise WriteError("no room")

    monkeypatch.setattr(checkpoint, "save", fails)
    with pytest.raises(WriteError, match=r"^no room$"):
        train(options_for(digits, tmp_path / "cut"), config=digits.config, report=silent)


def test_a_run_of_an_older_version_had_the_default_of_an_option_it_did_not_know():
    options = RunOptions.of(dataset="digits", learner="learner", steps=3)
    before = json.loads(json.dumps(options.to_dict()))
    del before["chunks"]
    assert options.changed_since(before, ()) == []
    assert options.but(chunks=4).changed_since(before, ()) == ["chunks = 16, now 4"]
    assert options.but(chunks=4, seed=2).changed_since(before, {"chunks"}) == ["seed = 0, now 2"]


# Every option of how the models are trained, at once.
ALL = dict(
    accumulate=3,
    grad_checkpointing=True,
    clip_grad=0.1,
    beta1=0.8,
    beta2=0.95,
    eps=1e-6,
    layer_decay=0.7,
    ema=0.9,
    ema_warmup=True,
    label_smoothing=0.1,
    augment="crop-flip",
    steps=20,
)


def with_a_transformer(config):
    """One that drops at random; layers that have an order, and can be computed twice."""
    arguments = dict(
        img_size=8, patch_size=2, embed_dim=16, depth=3, num_heads=2, drop_path_rate=0.3, proj_drop_rate=0.2
    )
    entry = {"architecture": "vit_tiny_patch16_224", "arguments": arguments, "preprocessing": {"size": 8}}
    return replace(config, models={**config.models, "vit": entry})


@pytest.mark.parametrize("task", ["classes", "pairs"])
def test_all_options_of_training_at_once_come_back(digits, pairs, tmp_path, task):
    changes, config = {"learner": "vit", **ALL}, with_a_transformer(digits.config)
    if task == "pairs":
        known = {"dataset": "pairs", "learner": "clip", "policy": "uniform", "online": None, "reference_scores": None}
        changes, config = {**ALL, **known, "batch_size": 10, "layer_decay": None}, pairs.config
    train(options_for(digits, tmp_path / "whole", **changes), config=config, report=silent)
    options = options_for(digits, tmp_path / "cut", **changes)
    for stop in (4, 12):
        with cut_after(stop):
            train(options, config=config, resume=stop > 4, report=silent)
    train(options, config=config, resume=True, report=silent)
    whole, cut = left_by(tmp_path / "whole/run"), left_by(tmp_path / "cut/run")
    trained = {"learner.safetensors", "learner-last.safetensors"} | (
        {"online.safetensors"} if task == "classes" else set()
    )
    assert set(whole["weights"]) == trained
    assert whole["weights"]["learner.safetensors"] != whole["weights"]["learner-last.safetensors"]
    assert cut["weights"] == whole["weights"] and cut["metrics"] == whole["metrics"]
    assert cut["selections"] == whole["selections"] and cut["summary"] == whole["summary"]


DAMAGE = {
    "a byte of the weights": ("learner.safetensors", lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]),
    "the optimizers cut": ("optimizers.pt", lambda data: data[:1000]),
    "the state empty": ("state.json", lambda data: b""),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_the_older_checkpoint_is_taken_where_the_newer_is_damaged(tmp_path, how):
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    go(tmp_path)
    whole = weights(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    go_until(9, tmp_path)
    name, damaged = DAMAGE[how]
    newest = tmp_path / "runs/run/checkpoints/resume-000000008" / name
    newest.write_bytes(damaged(newest.read_bytes()))
    told = []
    go(tmp_path, resume=True, report=told.append)
    assert any("resume-000000008: this checkpoint does not load" in line for line in told)
    assert "resumed after step 4" in told
    assert weights(tmp_path) == whole


def test_a_checkpoint_is_never_of_weights_that_are_not_finite(tmp_path, monkeypatch):
    """The loss is finite still when the step that ruins the weights begins."""
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    step = Trainee.step

    def ruined(self, *args):
        loss = step(self, *args)
        if self.steps == 8:
            with torch.no_grad():
                next(self.module.parameters())[0] = torch.nan
        return loss

    monkeypatch.setattr(Trainee, "step", ruined)
    with pytest.raises(DivergedError, match="a weight of the learner is nan or infinite after step 8"):
        go(tmp_path, log_every=100)
    assert [p.name for p in (tmp_path / "runs/run/checkpoints").iterdir()] == ["resume-000000004"]


def test_metrics_hold_no_nan(tmp_path):
    from curate.training.records import RunRecords

    records = RunRecords(tmp_path, silent)
    records.metric({"step": 1, "loss": float("nan"), "flops": {"a": float("inf"), "b": 1.5}})
    records.metric({"step": 2, "loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": None, "flops": {"a": None, "b": 1.5}}, {"step": 2, "loss": 0.5}]


def test_secrets_of_urls_are_in_no_file_of_a_run(tmp_path):
    from curate.training.records import RunRecords, write_json

    url = "https://user:secret@host/{0..9}.tar?sig=secret"
    write_json(tmp_path / "config.json", {"dataset": url, "list": [url], "steps": 3})
    records = RunRecords(tmp_path, silent)
    records.log(f"read {url}")
    for path in tmp_path.glob("*.*"):
        assert "secret" not in path.read_text(), path
    options = RunOptions.of(dataset=url, learner="learner", steps=3)
    stored = {**json.loads(json.dumps(options.to_dict())), "dataset": "https://host/{0..9}.tar"}
    assert options.changed_since(stored, ()) == []
