"""Where the time of a run's loop goes."""

import time
from collections import deque

import pytest
import torch
from curate.training import run
from curate.training.hardware import device_peak, peak_flops
from curate.training.loop import train_loop
from curate.training.timing import Rates, Stages, total, training
from support.tiny import go, shard, write_toml


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_all_stages_add_up_to_the_wall():
    clock = Clock()
    stages = Stages(clock=clock)
    clock.passes(5)  # before the loop
    began = clock.now
    with stages.running():
        clock.passes(0.25)
        with stages("data"):
            clock.passes(1)
        with stages("train"):
            clock.passes(2)
            with stages("compile"):
                clock.passes(40)
            clock.passes(3)
        clock.passes(0.5)
        assert stages.so_far() == {"other": 0.75, "data": 1, "train": 5, "compile": 40}
        with stages("data"):
            clock.passes(7)
    found = stages.state_dict()
    assert found == {"other": 0.75, "data": 8, "train": 5, "compile": 40}
    assert total(found) == clock.now - began
    assert training(found) == 13.75
    clock.passes(1000)
    with stages("evaluate"):  # after the loop only stages count
        clock.passes(4)
    clock.passes(1000)
    assert stages.state_dict() == {**found, "evaluate": 4}


def test_a_stage_that_fails_is_counted_and_left():
    clock = Clock()
    stages = Stages(clock=clock)
    with stages.running():
        with pytest.raises(KeyError), stages("data"):
            clock.passes(2)
            raise KeyError
        clock.passes(1)
    assert stages.state_dict() == {"data": 2, "other": 1}


def test_seconds_go_on_from_a_checkpoint():
    clock = Clock()
    stages = Stages(clock=clock)
    stages.load_state_dict({"data": 10.0})
    with stages("data"):
        clock.passes(1)
    assert stages.state_dict() == {"data": 11.0}


class Device:
    """A device that works after the host has gone on: each piece of work begins when it was launched and what lies before
    it is done."""

    def __init__(self):
        self.host = self.free_at = 0.0
        self.launched = deque()

    def works(self, seconds):
        self.free_at = max(self.free_at, self.host) + seconds

    def event(self):
        return Event(self)


class Event:
    def __init__(self, device):
        self.device, self.at, self.waited = device, None, 0

    def record(self):
        self.at = max(self.device.free_at, self.device.host)

    def query(self):
        return self.at <= self.device.host

    def synchronize(self):
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, other):
        assert self.query() and other.query(), "cuda refuses to tell of what has not happened"
        return 1000 * (other.at - self.at)


def test_on_a_gpu_stages_have_the_devices_time_and_nothing_waits():
    device = Device()
    stages = Stages(make_event=device.event)
    with stages.running():
        for _ in range(10):
            with stages("data"):
                device.host += 3.0  # reading, while the device works at the step before
            with stages("score"):
                device.works(0.5)
            with stages("train"):
                device.works(4.0)
                device.host += 0.01
            assert device.host < device.free_at, "the host has waited"
    assert stages.so_far().get("train", 0.0) < 40.0
    found = stages.state_dict()
    assert device.host == device.free_at
    # The device had to wait for the first super-batch alone: afterwards it was never idle.
    assert {k: round(v, 6) for k, v in found.items() if v > 1e-9} == {"data": 3.0, "score": 5.0, "train": 40.0}
    assert total(found) == pytest.approx(device.free_at)


def test_on_a_gpu_events_are_used_again():
    device, made = Device(), []
    stages = Stages(make_event=lambda: made.append(device.event()) or made[-1])
    with stages.running():
        for _ in range(50):
            with stages("train"):
                device.works(1.0)
            device.host = device.free_at
    assert len(made) <= 6
    assert stages.state_dict()["train"] == pytest.approx(50)


def test_what_compiles_is_apart():
    from torch._dynamo.callback import CallbackTrigger, callback_handler

    clock = Clock()
    stages = Stages(clock=clock, compiled=True)
    before = len(callback_handler.start_callbacks)
    with stages.running(), stages("train"):
        clock.passes(1)
        with callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0/0"):
            clock.passes(60)
    assert stages.state_dict() == {"train": 1, "compile": 60, "other": 0}
    assert len(callback_handler.start_callbacks) == before


def test_rates_of_a_line():
    rates = Rates(step=10, seconds={"data": 5.0, "train": 5.0}, flops=1e12, peak=1e12)
    now = {"data": 6.0, "train": 8.0, "evaluate": 100.0, "compile": 50.0}
    assert rates.since(14, now, 3e12, batch_size=32) == {
        "samples_per_second": 4 * 32 / 4.0,
        "mfu": 2e12 / 4.0 / 1e12,
        "data_share": 0.25,
    }
    later = {**now, "train": 10.0}
    assert rates.since(15, later, 4e12, batch_size=32)["samples_per_second"] == 16.0
    assert Rates(0, {}, 0.0, None).since(1, {"train": 1.0}, 1e9, 8) == {
        "samples_per_second": 8.0,
        "mfu": None,
        "data_share": 0.0,
    }


def test_peaks_by_name():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA L40S", "bf16") == 362e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops("NVIDIA L400", "bf16") is None
    assert device_peak(torch.device("cpu"), "bf16") is None


def test_a_runs_stages_add_up_to_its_loops_seconds(tmp_path, monkeypatch):
    """Measured round the whole loop by another clock, with a checkpoint every fourth step."""
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    walls = []

    def timed(job):
        began = time.perf_counter()
        done = train_loop(job)
        walls.append(time.perf_counter() - began)
        return done

    monkeypatch.setattr(run, "train_loop", timed)
    seconds = go(tmp_path, steps=40)["seconds"]
    stages = {k: v for k, v in seconds.items() if k not in ("total", "wall")}
    assert stages.keys() >= {"data", "score", "select", "train", "record", "save", "other"}
    assert sum(stages.values()) == pytest.approx(seconds["total"])
    assert seconds["total"] == pytest.approx(walls[0], rel=0.03)
