"""The seconds that choosing adds to a step over the FLOPs that it adds. About four minutes on 2 cores.

`curate train` in one process, uniform and learnability in turn, with the models of the main findings (the online model takes
1/48 of the learner's FLOPs a forward pass) on CIFAR-10N that was decoded in the first epoch; seconds and FLOPs are those of
metrics.jsonl, after the first steps. Small convolutions reach fewer FLOPs a second than large ones, so the surplus of seconds is
greater than that of FLOPs.

Goal: at most 1.5 times.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from curate.datasets.spec import load_config
from curate.training.options import RunOptions
from curate.training.run import train
from curate.units import Report
from data import part_of_cifar10n, reference_with_weights
from measuring import Benchmark, Figure, curate, in_turn, seconds_a_step

ROUNDS = int(os.environ.get("CURATE_ROUNDS", "5"))
BATCH_SIZE, FILTER_RATIO, SHARDS = 128, 0.8, 4
WARM_UP, STEPS = 8, 40
LEARNER = {"channels": [32, 64, 128, 256], "layers": [0, 1, 1]}
SCORER = {"channels": [8, 16, 32, 64], "layers": [0, 0, 0]}


def measure(work: Path, report: Report) -> list[Figure]:
    part_of_cifar10n(work, "part", SHARDS, report)
    reference_with_weights(work, "learner", "small_resnet", **LEARNER)
    reference_with_weights(work, "scorer", "small_resnet", **SCORER)
    scoring = ("--dataset", "part", "--reference", "scorer", "--out", work / "scores")
    curate("score-reference", *scoring, "--", "--direct_running_mode=in_memory", "--direct_num_workers=1", cwd=work)
    flops: dict[str, float] = {}

    def seconds_of(policy: str) -> float:
        seconds, flops[policy] = step(work, policy)
        return seconds

    seconds = in_turn(
        ROUNDS, report, uniform=lambda: seconds_of("uniform"), learnability=lambda: seconds_of("learnability")
    )
    more_flops = flops["learnability"] / flops["uniform"] - 1
    more_seconds = [b / a - 1 for a, b in zip(seconds["uniform"], seconds["learnability"], strict=True)]
    return [
        Figure(
            name="surplus of seconds over surplus of FLOPs",
            samples=tuple(more / more_flops for more in more_seconds),
            goal=1.5,
            better="lower",
        ),
        Figure(name="more seconds a step", samples=tuple(100 * more for more in more_seconds), unit="%"),
        Figure(name="more FLOPs a step", samples=(100 * more_flops,), unit="%"),
        *(Figure(name=name, samples=tuple(1000 * s for s in of), unit="ms a step") for name, of in seconds.items()),
    ]


def step(work: Path, policy: str) -> tuple[float, float]:
    """Seconds of a step of `curate train`, after the first ones, and its FLOPs."""
    run = work / "runs" / policy
    shutil.rmtree(run, ignore_errors=True)
    choosing = {"online": "scorer", "reference_scores": str(work / "scores"), "filter_ratio": FILTER_RATIO}
    options = RunOptions.of(
        dataset="part",
        learner="learner",
        policy=policy,
        batch_size=BATCH_SIZE,
        steps=STEPS,
        precision="fp32",
        augment="none",
        log_every=WARM_UP,
        evaluate=False,
        out=str(run.parent),
        name=run.name,
        **(choosing if policy != "uniform" else {}),
    )
    summary = train(options, config=load_config(work / "curate.toml"), report=lambda line: None)
    seconds = seconds_a_step((run / "metrics.jsonl").read_text(encoding="utf-8"))
    return seconds, summary["regimes"]["foundation"] / STEPS


BENCHMARK = Benchmark(
    "surplus",
    "choosing adds at most 1.5 times as large a share of seconds to a step as of FLOPs",
    measure,
    {"learner": LEARNER, "online": SCORER, "batch_size": BATCH_SIZE, "filter_ratio": FILTER_RATIO, "precision": "fp32"},
)
