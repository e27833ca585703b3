"""A scheduler takes the machine back: a checkpoint, one line, exit code 143."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from curate.datasets import readers
from curate.errors import StoppedError
from curate.training import loading, run
from curate.training.loop import train_loop
from curate.training.signals import Stop, handled_by
from support.commands import curate
from support.tiny import go, shard, weights, write_toml


@pytest.fixture
def work(tmp_path):
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    return tmp_path


def after(step, do, monkeypatch):
    def after_step(done):
        if done == step:
            do()

    monkeypatch.setattr(run, "train_loop", lambda job: train_loop(job, after_step))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_step_and_a_resume_is_exact(work, monkeypatch, number):
    go(work)
    whole = weights(work)
    (work / "runs/run").rename(work / "runs/whole")
    after(6, lambda: os.kill(os.getpid(), number), monkeypatch)
    told = []
    with pytest.raises(StoppedError, match=f"stopped by {number.name} after step 6 of 12") as e:
        go(work, report=told.append)
    assert e.value.exit_code == 128 + number
    assert not any("stopped" in line for line in told)  # the command says it
    assert logged(work) == f"stopped by {number.name} after step 6 of 12; --resume continues from the last checkpoint"
    assert (work / "runs/run/checkpoints/resume-000000006").is_dir()
    monkeypatch.setattr(run, "train_loop", train_loop)
    go(work, resume=True)
    assert weights(work) == whole


def test_a_signal_while_the_data_hangs_does_not_wait_for_it(work, monkeypatch):
    for i in range(3):
        shard(work / f"more/{i}.tar", range(20 * i, 20 * i + 20))
    write_toml(work, train="more/*.tar")
    hangs, release = [], threading.Event()

    def read(spec, one):
        if hangs:
            release.wait(200)
        yield from readers.read_shard(spec, one)

    monkeypatch.setattr(loading, "read_shard", read)

    def stuck():
        hangs.append(True)
        signal.setitimer(signal.ITIMER_REAL, 1.0)

    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        after(2, stuck, monkeypatch)
        started = time.monotonic()
        with pytest.raises(StoppedError, match="after step"):
            go(work, host_bytes=1, cache_bytes=0, checkpoint_every=100)
        assert time.monotonic() - started < 100
    finally:
        release.set()
        signal.signal(signal.SIGALRM, before)
    assert list((work / "runs/run/checkpoints").glob("resume-*"))


def test_the_command_says_one_line_and_ends_with_143(work, monkeypatch):
    after(3, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    monkeypatch.chdir(work)
    done = curate("train", "--dataset", "d", "--learner", "learner", "--steps", 9, "--batch-size", 16, "--no-evaluate")
    assert done.code == 143
    assert done.error.startswith("stopped by SIGTERM after step 3 of 9; ")
    assert done.err.count("stopped") == 1


def logged(work):
    """The last line of the run's log.txt, without its time."""
    return (work / "runs/run/log.txt").read_text().splitlines()[-1].split(" ", 2)[2]


def test_ctrl_c_is_one_line_and_one_in_the_log(work, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    after(6, interrupt, monkeypatch)
    monkeypatch.chdir(work)
    options = ("--steps", 9, "--batch-size", 16, "--no-evaluate", "--name", "run", "--checkpoint-every", 5)
    done = curate("train", "--dataset", "d", "--learner", "learner", *options)
    assert done.code == 130
    assert done.error == "interrupted; run the same command again to resume (train: add --resume)"
    assert done.err.count("interrupted") == 1
    assert logged(work) == "interrupted; --resume continues from the last checkpoint"


def test_a_second_signal_ends_at_once_and_what_is_ignored_stays_ignored():
    stop = Stop()
    stop.hold()
    stop(signal.SIGTERM)
    assert stop.asked == signal.SIGTERM
    with pytest.raises(StoppedError):
        stop(signal.SIGTERM)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with handled_by(stop):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_in_the_middle_of_a_step_and_nothing_of_that_is_saved():
    stop = Stop()
    stop.hold()
    stop(signal.SIGTERM)
    assert not stop.torn
    with pytest.raises(StoppedError):
        stop(signal.SIGTERM)
    assert stop.torn
    waiting = Stop()
    with pytest.raises(StoppedError):
        waiting(signal.SIGTERM)
    assert not waiting.torn
