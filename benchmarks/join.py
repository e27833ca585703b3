"""What joining the stored scores adds to the data stream. About 1 minute on 2 cores.

Both sides read the first epoch of the same 10 shards of CIFAR-10N from disk, decode it and make super-batches, in the
same order; one looks every example up in the score table and compares its target's hash. Training itself, beside which
both are small, is left out. Opening the table is in; the check of the whole table before a run's first step is not.

Goal: at most 2 % more time.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

from curate.datasets.shards import list_shards
from curate.datasets.spec import DatasetSpec
from curate.scoring.table import open_scores
from curate.training.superbatch import SuperBatches
from data import part_of_cifar10n, reference_with_weights
from measuring import Benchmark, Figure, Report, curate, in_turn, ratios

ROUNDS, SHARDS, SIZE = 15, 10, 256
GOAL = 2.0


def measure(work: Path, report: Report) -> list[Figure]:
    from curate.scoring.models import ModelSpec, load_model

    spec = part_of_cifar10n(work, "cifar10n-10-shards", SHARDS, report)
    reference_with_weights(work, "tiny", "small_resnet", channels=[8, 16, 32, 64], layers=[0, 1, 1])
    table = work / "join-scores"
    curate("score-reference", "--dataset", spec.name, "--reference", "tiny", "--out", table, cwd=work)
    geometry = load_model(
        ModelSpec(name="m", task="classification", architecture="small_resnet", num_classes=10)
    ).geometry

    def epoch(with_scores: bool) -> float:
        return epoch_seconds(spec, geometry, table if with_scores else None)

    epoch(False)
    found = in_turn(ROUNDS, report, joined=lambda: epoch(True), plain=lambda: epoch(False))
    more = tuple(100 * (ratio - 1) for ratio in ratios(found["joined"], found["plain"]))
    return [
        Figure(name="more time with the join", samples=more, unit="%", goal=GOAL, better="lower"),
        Figure(name="first epoch, joined", samples=found["joined"], unit="s"),
        Figure(name="first epoch, no scores", samples=found["plain"], unit="s"),
    ]


def epoch_seconds(spec: DatasetSpec, geometry: object, table: Path | None) -> float:
    shards = list_shards(spec)
    started = time.perf_counter()
    data = SuperBatches(spec, shards, SIZE, [geometry], scores=open_scores(str(table)) if table else None)
    examples = sum(len(batch) for batch in islice(data.stream(), SHARDS * 1000 // SIZE))
    seconds = time.perf_counter() - started
    assert examples == SHARDS * 1000 // SIZE * SIZE
    return seconds


BENCHMARK = Benchmark(
    "join",
    "the join makes the first epoch's data stream at most 2 % slower",
    measure,
    {"data": f"{SHARDS} shards of 1,000 PNGs of 32 px", "super_batch": SIZE},
)
