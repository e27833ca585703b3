"""A rank of a run that torchrun started is killed: torchrun starts all ranks again, and the run ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from faults.support import REAL_SECONDS, wait_until
from support.commands import free_port
from support.runs import left_by

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
STEPS, KILLED_AFTER = 80, 30
OPTIONS = dict(
    dataset="digits",
    policy="learnability",
    learner="learner",
    online="scorer",
    batch_size=32,
    precision="fp32",
    log_every=1,
    checkpoint_every=7,
    steps=STEPS,
    name="run",
)


def start(digits, out, errors, *how):
    """Two ranks. The same command serves the first start and every other."""
    out.mkdir()
    given = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    about = ("--config", digits.toml, "--reference-scores", digits.table, "--out", out, "--resume")
    torchrun = ("torch.distributed.run", *how, "--nproc-per-node", "2", "--max-restarts", "1")
    with errors.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *torchrun, "-m", "curate", "train", *given, *map(str, about)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


def rank_of(process, rank):
    """The process of a rank."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.environ().get("RANK") == str(rank) and "train" in child.cmdline():
                return child
        except psutil.Error:
            continue
    return None


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(digits, folder / "out", folder / "errors", "--standalone")
    assert process.wait(timeout=REAL_SECONDS) == 0, (folder / "errors").read_text()
    return left_by(folder / "out/run")


# torchrun finds its processes in two ways, and the store of each outlives them.
@pytest.mark.parametrize(("rank", "how"), [(0, "--standalone"), (1, "--master-port")])
def test_a_killed_rank_is_started_again_and_the_run_ends_with_the_same_weights(
    digits, tmp_path, undisturbed, rank, how
):
    errors, metrics = tmp_path / "errors", tmp_path / "out/run/metrics.jsonl"
    process = start(digits, tmp_path / "out", errors, how, *([str(free_port())] if how == "--master-port" else []))

    def steps():
        return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0

    wait_until(lambda: steps() >= KILLED_AFTER, process, f"{KILLED_AFTER} steps")
    killed = rank_of(process, rank)
    killed.send_signal(signal.SIGKILL)
    assert process.wait(timeout=REAL_SECONDS) == 0, errors.read_text()
    text = errors.read_text()
    assert "resumed after step" in (tmp_path / "out/run/log.txt").read_text(), text
    found = left_by(tmp_path / "out/run")
    for part, expected in undisturbed.items():
        assert found[part] == expected, f"{part}: rank {rank} was killed\n{text}"


def test_a_killed_comparison_leaves_no_ranks_behind_and_goes_on(digits, tmp_path):
    """Each of its runs has two ranks."""
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    given = ("--dataset", "digits", "--learner", "learner", "--online", "scorer", "--batch-size", "32", "--seeds", "1")
    about = (
        "--config",
        digits.toml,
        "--reference-scores",
        digits.table,
        "--out",
        tmp_path / "out",
        "--launcher",
        launcher,
    )
    budgets = ("--budget-flops", "2e10", "--budgets", "1x", "--ladder", "2x")
    command = [sys.executable, "-m", "curate", "compare", *given, *budgets, *map(str, about)]

    def start(errors):
        with errors.open("wb") as file:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)

    process = start(tmp_path / "errors")
    runs = tmp_path / "out/runs"
    wait_until(lambda: list(runs.glob("*/metrics.jsonl")), process, "steps of a run")
    started = psutil.Process(process.pid).children(recursive=True)
    assert sum("launched" in child.cmdline() for child in started) >= 2
    process.kill()
    process.wait()
    assert not psutil.wait_procs(started, timeout=120)[1]
    again = start(tmp_path / "errors-2")
    assert again.wait(timeout=REAL_SECONDS) == 0, (tmp_path / "errors-2").read_text()
    names = {path.parent.name for path in runs.glob("*/summary.json")}
    assert names == {"uniform-1x-seed0", "uniform-2x-seed0", "learnability-1x-seed0"}
    assert not list(runs.glob(".*"))
    assert all("on 2 ranks of cpu" in (runs / name / "log.txt").read_text() for name in names)
