"""How fast a learner is whose super-batches actors score, beside one that scores them itself. About six minutes on 2 cores.

Each side is a run of `curate train` in this process, on CIFAR-10N that is in memory; seconds are those of its metrics.jsonl,
after the first steps. The models are such that scoring is half of a step's FLOPs, so that a learner's core and a scorer's have
the same work. All sides score a super-batch for each step: equal online FLOPs.

- One actor, in a process with one thread, beside a learner with one thread: over one process with one thread, which scores by
  itself (at best 2), and over one process with two threads, which has the same two cores (at best 1).
- `--score-ahead 2` in one process with two threads, which needs no Ray and does the same on one machine.
- Two more points, by which `experiments/many_scorers.py`, a simulation of actors on many machines, is checked: twice the scoring
  for a step, so that the learner has to wait, and half of it, so that the actor has to.

Goals: 1.5 and 1.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from curate.datasets.spec import load_config
from curate.training import actors
from curate.training.options import RunOptions
from curate.training.run import train
from curate.units import Report
from data import part_of_cifar10n, reference_with_weights
from measuring import Benchmark, Figure, curate, in_turn, ratios

ROUNDS = int(os.environ.get("CURATE_ROUNDS", "5"))
POINTS = max(1, ROUNDS - 2)
BATCH_SIZE, FILTER_RATIO, LANES, REFRESH = 32, 0.9, 2, 10
# In the first steps images are decoded for the first time, and the pool fills.
WARM_UP, STEPS, LOG_EVERY = 8, 32, 4


def measure(work: Path, report: Report) -> list[Figure]:
    part_of_cifar10n(work, "part", LANES, report)
    reference_with_weights(work, "scorer", "small_resnet", channels=[16, 32, 64, 128], layers=[0, 1, 1])
    reference_with_weights(work, "learner", "small_resnet", channels=[24, 48, 96, 192], layers=[0, 1, 1])
    scoring = ("--dataset", "part", "--reference", "scorer", "--out", work / "scores")
    curate("score-reference", *scoring, "--", "--direct_running_mode=in_memory", "--direct_num_workers=1", cwd=work)
    actors._connect("local")  # once: each run would start a Ray of its own
    found: dict[str, list[dict[str, float]]] = {}

    def side(name: str, threads: int, **options: Any) -> Any:
        def run() -> float:
            torch.set_num_threads(threads)
            found.setdefault(name, []).append(run_of(work, name.replace(" ", "-"), **options))
            return found[name][-1]["step"]

        return run

    one_actor: dict[str, Any] = {"actors": 1, "refresh": REFRESH}
    sides = {
        "alone": side("one thread", 1),
        "two_threads": side("two threads", 2),
        "ahead": side("score-ahead, two threads", 2, score_ahead=2),
        "actor": side("one actor", 1, **one_actor),
    }
    seconds = in_turn(ROUNDS, report, **sides)
    share = 1 - FILTER_RATIO
    more = {
        "twice": side("one actor, twice the scoring", 1, **one_actor, samples_per_insert=share / 2),
        "half": side("one actor, half the scoring", 1, **one_actor, samples_per_insert=share * 2),
    }
    in_turn(POINTS, report, **more)
    torch.set_num_threads(2)
    actors._ray().shutdown()
    return [
        Figure(
            name="one actor over one thread (steps/s)", samples=ratios(seconds["alone"], seconds["actor"]), goal=1.5
        ),
        Figure(
            name="one actor over two threads (steps/s)",
            samples=ratios(seconds["two_threads"], seconds["actor"]),
            goal=1.0,
        ),
        Figure(name="score-ahead over two threads (steps/s)", samples=ratios(seconds["two_threads"], seconds["ahead"])),
        Figure(
            name="examples scored: one actor over one thread",
            samples=ratios(
                [one["scored"] for one in found["one actor"]], [one["scored"] for one in found["one thread"]]
            ),
        ),
        *(figure for name in found for figure in figures_of(name, found[name])),
    ]


def run_of(work: Path, name: str, **changes: Any) -> dict[str, float]:
    """Of a run's steps after the first ones: seconds of a `step`, and of those that score where no actor does; of one with an
    actor both sides' idle shares, the actor's seconds for an example, the mean age of losses, and samples for each insert. And
    how many examples the whole run scored."""
    run = work / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    options = RunOptions.of(
        **{
            **dict(dataset="part", learner="learner", online="scorer", policy="learnability"),
            **dict(reference_scores=str(work / "scores"), out=str(run.parent), name=name, evaluate=False),
            **dict(batch_size=BATCH_SIZE, filter_ratio=FILTER_RATIO, steps=STEPS, lanes=LANES, log_every=LOG_EVERY),
            **dict(precision="fp32", augment="none", checkpoint_every=10 * STEPS),
            **changes,
        }
    )
    summary = train(options, config=load_config(work / "curate.toml"), report=lambda line: None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["step"] >= WARM_UP]
    first, last = lines[0], lines[-1]
    steps = last["step"] - first["step"]

    def grown(*path: str) -> float:
        """By how much a number of a line grew for each step."""
        then, now = first, last
        for part in path:
            then, now = then.get(part, 0.0), now.get(part, 0.0)
        return float((now - then) / steps)

    found = {"step": grown("seconds", "total"), "scored": float(summary["examples_scored"])}
    if "actors" not in changes:
        return {**found, "score": grown("seconds", "score")}
    waited, scorer_waited = grown("learner_waited"), grown("scorers_waited")
    rows = grown("flops", "online_score") / row_flops(run)
    return {
        **found,
        "idle": waited / found["step"],
        "age": sum(line["score_age"] for line in lines[1:]) / (len(lines) - 1),
        "ratio": BATCH_SIZE / rows,
        "an example": (found["step"] - scorer_waited) / rows,
        "scorer idle": scorer_waited / found["step"],
    }


def row_flops(run: Path) -> float:
    """FLOPs of scoring one example in this run."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    share = config["samples_per_insert"] or 1 - FILTER_RATIO
    return float(manifest["flops_per_step"]["online_score"] / round(BATCH_SIZE / share))


def figures_of(name: str, rounds: list[dict[str, float]]) -> list[Figure]:
    told = {
        "step": ("a step", 1000.0, "ms"),
        "score": ("scoring in a step", 1000.0, "ms"),
        "idle": ("the learner waits", 100.0, "%"),
        "scorer idle": ("the actor waits", 100.0, "%"),
        "an example": ("the actor, an example", 1000.0, "ms"),
        "age": ("mean age of a loss", 1.0, "steps"),
        "ratio": ("samples for each insert", 1.0, ""),
    }
    return [
        Figure(name=f"{name}: {words}", samples=tuple(factor * one[key] for one in rounds), unit=unit)
        for key, (words, factor, unit) in told.items()
        if key in rounds[0]
    ]


BENCHMARK = Benchmark(
    "actors",
    "a learner with one actor over one that scores by itself >= 1.5; over one with the same two cores >= 1",
    measure,
    {
        "learner": "small_resnet of 24 to 192 channels at 32 px",
        "online": "the same, two thirds as wide",
        "batch_size": BATCH_SIZE,
        "filter_ratio": FILTER_RATIO,
        "refresh": REFRESH,
        "steps": STEPS,
        "steps_a_round": STEPS - WARM_UP,
    },
)
