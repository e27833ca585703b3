"""What joining the stored scores adds to the data stream. About 3 minutes on 2 cores.

Both sides read the first epoch of the same 10 shards of CIFAR-10N from disk, decode it and make super-batches, in the
same order; one looks every example up in the score table and compares its target's hash. Training itself, beside which
both are small, is left out. Opening the table is in; the check of the whole table before a run's first step is not.

The difference of two whole epochs drowns in noise where others compute too, so the join's own work (reading the score
files, matching keys and hashes) is also timed by itself, over examples already read, as a share of a plain epoch.

Goal: at most 2 % more time, by the difference of the epochs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from curate.datasets.decoding import Geometry
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import DatasetSpec
from curate.scoring.loading import load_model
from curate.scoring.models import ModelSpec
from curate.scoring.tables.join import join_shard
from curate.scoring.tables.lookup import open_scores
from curate.training.superbatch import SuperBatches
from curate.units import Report
from data import part_of_cifar10n, reference_with_weights
from measuring import Benchmark, Figure, curate, in_turn, ratios

ROUNDS, SHARDS, SIZE = 31, 10, 256
GOAL = 2.0


def measure(work: Path, report: Report) -> list[Figure]:
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
    shards = ((shard.name, read_shard(spec, shard)) for shard in list_shards(spec))
    examples = {name: [one for one in read if isinstance(one, Example)] for name, read in shards}
    alone = [join_seconds(examples, table) for _ in range(ROUNDS)]
    more = tuple(value - 100 for value in percent(found["joined"], found["plain"]))
    return [
        Figure(name="more time with the join", samples=more, unit="%", goal=GOAL, better="lower"),
        Figure(name="the join alone over a plain epoch", samples=percent(alone, found["plain"]), unit="%"),
        Figure(name="first epoch, joined", samples=found["joined"], unit="s"),
        Figure(name="first epoch, no scores", samples=found["plain"], unit="s"),
    ]


def epoch_seconds(spec: DatasetSpec, geometry: Geometry, table: Path | None) -> float:
    started = time.perf_counter()
    data = SuperBatches(spec, SIZE, views={"learner": geometry}, scores=str(table) if table else None, verify=False)
    examples = sum(len(batch) for batch in islice(data, SHARDS * 1000 // SIZE))
    seconds = time.perf_counter() - started
    data.close()
    assert examples == SHARDS * 1000 // SIZE * SIZE
    return seconds


def join_seconds(examples: dict[str, list[Example]], table: Path) -> float:
    """All that the join adds to an epoch, on examples that are already read."""
    started = time.perf_counter()
    scores = open_scores(str(table))
    for name, read in examples.items():
        join_shard(read, scores.shard(name))
    return time.perf_counter() - started


def percent(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    return tuple(100 * ratio for ratio in ratios(over, under))


BENCHMARK = Benchmark(
    "join",
    "the join makes the first epoch's data stream at most 2 % slower",
    measure,
    {"data": f"{SHARDS} shards of 1,000 PNGs of 32 px", "super_batch": SIZE},
)
