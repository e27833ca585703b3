"""This tree against an older commit's, through the command line alone: a training step, and scoring.

    CURATE_BASE=8df39c1 python benchmarks/run.py against_commit

Both trees train the same models on the same data for the same steps and score the same shards, each in a process of its own
with one thread; what is compared are the seconds that the runs themselves report (summary.json's data, score, select and
train; the scoring job's own line), so that imports and start-up are no part of them. Scoring runs in turn. Both trees train
at once, each on a core of its own, and change cores in every round: a minute in which the machine is slow hits both. (In
turn, the same tree's runs differed by 25 %.) Needs git, two cores and Linux.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from curate.units import Report
from data import part_of_cifar10n, reference_with_weights
from measuring import Benchmark, Figure, in_turn, ratios

ROOT = Path(__file__).parent.parent
BASE = os.environ.get("CURATE_BASE", "8df39c1")
ROUNDS, STEPS, SHARDS = 5, 30, 10
TRAIN = ("--dataset", "part", "--learner", "learner", "--steps", STEPS, "--batch-size", 128, "--precision", "fp32")
CHOOSING = ("--policy", "learnability", "--online", "scorer", "--filter-ratio", 0.5)


def measure(work: Path, report: Report) -> list[Figure]:
    part_of_cifar10n(work, "part", SHARDS, report)
    reference_with_weights(work, "scorer", "small_resnet", channels=[8, 16, 32, 64], layers=[0, 1, 1])
    reference_with_weights(work, "learner", "small_resnet", channels=[32, 64, 128, 256], layers=[0, 1, 1])
    before = work / "before"
    subprocess.run(["git", "worktree", "add", "--force", "--detach", before, BASE], cwd=ROOT, check=True)
    try:
        trees = {"before": package_of(before), "after": package_of(ROOT)}
        scoring = in_turn(ROUNDS, report, **{name: lambda t=tree: score(work, t) for name, tree in trees.items()})
        uniform = at_once(ROUNDS, report, lambda name, core: step(work, trees[name], name, core))
        chosen = at_once(ROUNDS, report, lambda name, core: step(work, trees[name], name, core, *CHOOSING))
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    figures = []
    for what, found in (("score-reference", scoring), ("uniform step", uniform), ("learnability step", chosen)):
        figures += [
            Figure(name=f"{what}: time at {BASE} over now", samples=ratios(found["before"], found["after"]), goal=0.97),
            Figure(name=f"{what}, now", samples=found["after"], unit="s"),
        ]
    return figures


def at_once(rounds: int, report: Report, seconds: Callable[[str, int], float]) -> dict[str, tuple[float, ...]]:
    """Both sides together, `seconds(name, core)` each; the cores change hands every round."""
    samples: dict[str, list[float]] = {"before": [], "after": []}
    cores = sorted(os.sched_getaffinity(0))[:2]
    with ThreadPoolExecutor(2) as pool:
        for i in range(rounds):
            running = {name: pool.submit(seconds, name, cores[(i + j) % 2]) for j, name in enumerate(samples)}
            for name, one in running.items():
                samples[name].append(one.result())
            shown = ", ".join(f"{name} {values[-1]:,.4g}" for name, values in samples.items())
            report(f"  round {i + 1}/{rounds}: {shown}")
    return {name: tuple(values) for name, values in samples.items()}


def package_of(tree: Path) -> Path:
    """A folder that has the tree under the package's name, to be put on the path."""
    folder = tree / ".cache" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "curate"
    link.unlink(missing_ok=True)
    link.symlink_to(tree)
    return folder


def curate(work: Path, package: Path, *arguments: object, core: int | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    command = [*pinned, sys.executable, "-m", "curate", *map(str, arguments)]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stderr


def score(work: Path, package: Path) -> float:
    """Seconds of the job from its own line. Its stages are no measure: shards are read and decoded while others are in their
    forward pass, so they add up to twice as much."""
    out = work / "scores"
    shutil.rmtree(out, ignore_errors=True)
    local = ("--", "--direct_running_mode=in_memory", "--direct_num_workers=1")
    told = curate(work, package, "score-reference", "--dataset", "part", "--reference", "scorer", "--out", out, *local)
    return float(re.findall(r"shards \(.*\) in ([\d.]+) s", told)[-1])


def step(work: Path, package: Path, name: str, core: int, *more: object) -> float:
    """Seconds of all steps."""
    run = work / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    table = ("--reference-scores", work / "scores") if more else ()
    curate(work, package, "train", *TRAIN, *more, *table, "--no-evaluate", "--name", name, core=core)
    seconds = json.loads((run / "summary.json").read_text())["seconds"]
    return sum(float(seconds[stage]) for stage in ("data", "score", "select", "train"))


BENCHMARK = Benchmark(
    "against_commit",
    f"no step and no scoring is slower than at {BASE} (ratio at least 0.97)",
    measure,
    {"base": BASE, "steps": STEPS, "shards": SHARDS, "threads": 1, "precision": "fp32"},
)
