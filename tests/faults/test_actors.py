"""Actors on Ray are killed, hang, join and leave, and the learner is killed: the real command, and what it leaves."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter

import psutil
import pyarrow.parquet as pq
import pytest
from faults.support import REAL_SECONDS, start, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
STEPS, B, ROWS = 600, 32, 900
OPTIONS = dict(
    dataset="digits",
    policy="learnability",
    learner="learner",
    online="scorer",
    batch_size=16,
    precision="fp32",
    log_every=1,
    checkpoint_every=20,
    refresh=2,
    actors=2,
    name="run",
)


class Run:
    """A run of the real command, disturbed."""

    def __init__(self, digits, tmp_path, steps=STEPS):
        self.out, self.folder, self.errors = tmp_path / "out", tmp_path / "out/run", tmp_path / "errors"
        given = [
            text
            for name, value in {**OPTIONS, "steps": steps}.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        about = ("--config", digits.toml, "--reference-scores", digits.table, "--out", self.out, "--no-evaluate")
        self.command = ["train", *given, *map(str, about), "--resume"]
        self.process, self.all = None, steps

    def start(self, **environment):
        self.process = start(self.command, self.errors, **environment)
        return self

    def steps(self):
        metrics = self.folder / "metrics.jsonl"
        return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0

    def until(self, steps):
        wait_until(lambda: self.steps() >= steps, self.process, f"{steps} steps")

    def scorers(self):
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if told(child).startswith("ray::Scorer")]

    def ended(self, code=0):
        assert self.process.wait(timeout=REAL_SECONDS) == code, self.errors.read_text()

    def address(self):
        return re.search(r"--join (\S+)", (self.folder / "log.txt").read_text())[1]


def told(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def check_whole(run):
    """Every step once, no example more often than epochs were begun, and all FLOPs paid. Returns the counts."""
    summary = json.loads((run.folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, run.all + 1)]
    rows = [row for f in sorted((run.folder / "selections").glob("*.parquet")) for row in pq.read_table(f).to_pylist()]
    assert Counter(row["step"] for row in rows) == dict.fromkeys(range(1, run.all + 1), 16)
    leased = summary["examples_scored"]
    assert leased >= run.all * B
    often = Counter((row["shard"], row["key"]) for row in rows)
    assert max(often.values()) <= leased // ROWS + 1
    per_row = json.loads((run.folder / "manifest.json").read_text())["flops_per_step"]["online_score"] / B
    assert summary["ledger"]["online_score"] == pytest.approx(leased * per_row)
    spent = [line["flops"]["online_score"] for line in lines]
    assert spent == sorted(spent) and spent[-1] == summary["ledger"]["online_score"]
    return summary["counts"]


def test_a_scorer_is_killed_and_another_hangs(digits, tmp_path):
    run = Run(digits, tmp_path).start(CURATE_TIMEOUT_MINUTES="0.1")
    run.until(20)
    wait_until(lambda: len(run.scorers()) == 2, run.process, "both scorers")
    first, second = run.scorers()
    first.kill()
    run.until(60)
    second.send_signal(signal.SIGSTOP)
    run.ended()
    assert check_whole(run)["leases_lost"] >= 1


def test_the_learner_is_stopped_then_killed_and_each_time_resumed(digits, tmp_path):
    run = Run(digits, tmp_path).start()
    run.until(50)
    run.process.send_signal(signal.SIGTERM)
    run.ended(128 + signal.SIGTERM)
    run.start().until(150)
    scorers = run.scorers()
    run.process.kill()
    run.ended(-signal.SIGKILL)
    assert len(scorers) == 2 and not psutil.wait_procs(scorers, timeout=60)[1]  # they end with the learner
    run.start().ended()
    assert "resumed after step" in (run.folder / "log.txt").read_text()
    check_whole(run)


def test_a_scorer_joins_and_leaves(digits, tmp_path):
    run = Run(digits, tmp_path, steps=4000).start()
    run.until(5)
    joined = start(["actor", "--join", run.address()], tmp_path / "joined")
    log = run.folder / "log.txt"
    wait_until(lambda: re.search(r"\d+:0 joined", log.read_text()), joined, "that it joined")
    at = run.steps()
    run.until(at + 30)
    joined.send_signal(signal.SIGINT)
    joined.wait(timeout=60)
    run.ended()
    check_whole(run)


def test_ray_is_lost(digits, tmp_path):
    run = Run(digits, tmp_path).start()
    run.until(50)
    for process in psutil.Process(run.process.pid).children(recursive=True):
        if "raylet" in told(process) or "gcs_server" in told(process):
            process.kill()
    assert run.process.wait(timeout=REAL_SECONDS) != 0  # Ray ends its driver too
    run.start().ended()
    check_whole(run)
