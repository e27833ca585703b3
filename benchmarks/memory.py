"""Peak memory of `curate score-reference` at 4 and at 40 shards. About 2 minutes on 2 cores.

The resident memory of the command and all of its children is summed every 50 ms and the highest sum taken; pages that
processes share count once for each. Data: CIFAR-10N with a small network, so that rows fly by.

Goal: ten times the data, at most 5 % more memory.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import psutil
from curate.units import Report
from data import part_of_cifar10n, reference_with_weights
from measuring import Benchmark, Figure, command, in_turn, ratios

ROUNDS, SMALL, LARGE = 3, 4, 40
SAMPLE_SECONDS = 0.05
GOAL = 5.0


def measure(work: Path, report: Report) -> list[Figure]:
    for shards in (SMALL, LARGE):
        part_of_cifar10n(work, f"cifar10n-{shards}-shards", shards, report)
    reference_with_weights(work, "tiny", "small_resnet", channels=[8, 16, 32, 64], layers=[0, 1, 1])
    found = in_turn(
        ROUNDS,
        report,
        small=lambda: peak_megabytes(work, f"cifar10n-{SMALL}-shards", SMALL),
        large=lambda: peak_megabytes(work, f"cifar10n-{LARGE}-shards", LARGE),
    )
    more = tuple(100 * (ratio - 1) for ratio in ratios(found["large"], found["small"]))
    return [
        Figure(name="more memory at ten times the data", samples=more, unit="%", goal=GOAL, better="lower"),
        Figure(name=f"peak at {SMALL} shards", samples=found["small"], unit="MB"),
        Figure(name=f"peak at {LARGE} shards", samples=found["large"], unit="MB"),
    ]


def peak_megabytes(work: Path, dataset: str, shards: int) -> float:
    """Of scoring a data set with the reference `tiny`, whose table then has so many files."""
    out = work / "memory-scores"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["--dataset", dataset, "--reference", "tiny", "--out", out]
    process = subprocess.Popen(
        command("score-reference", *arguments), cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        peak = max(peak, _resident(parent))
        time.sleep(SAMPLE_SECONDS)
    assert process.returncode == 0, "score-reference failed"
    assert len(list(out.glob("*/*/*.parquet"))) == shards
    return peak / 1e6


def _resident(parent: psutil.Process) -> int:
    total = 0
    try:
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


BENCHMARK = Benchmark(
    "memory",
    "ten times the shards raise score-reference's peak memory by at most 5 %",
    measure,
    {"data": f"{SMALL} and {LARGE} shards of 1,000 PNGs of 32 px", "model": "small_resnet [8, 16, 32, 64]"},
)
