"""What `curate score-reference` costs at 10^3, 10^4, 10^5 and 10^6 examples. About 12 minutes on 2 cores.

Shards of 1,000 pictures of 32 pixels: CIFAR-10N's 40, and links to them under other names beyond. The network is small,
so that what is not the network's own work shows. Whole commands: seconds, and the peak memory of all processes. What an
example costs is taken between two sizes, so that start-up drops out.

Goal: an example costs no more in the last 900,000 than in the 90,000 before, within 10 %; memory grows by at most 5 %.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

from curate.datasets.spec import add_dataset, load_config
from curate.units import Report
from data import cifar10n, reference_with_weights
from measuring import Benchmark, Figure, in_turn, ratios
from memory import peak_megabytes

ROUNDS, SHARDS, PER_SHARD = 2, (1, 10, 100, 1000), 1000
COST_GOAL, MEMORY_GOAL = 1.1, 5.0


def measure(work: Path, report: Report) -> list[Figure]:
    for shards in SHARDS:
        repeated(work, shards, report)
    reference_with_weights(work, "tiny", "small_resnet", channels=[8, 16, 32, 64], layers=[0, 1, 1])
    seconds: dict[int, list[float]] = {shards: [] for shards in SHARDS}

    def score(shards: int) -> float:
        started = time.perf_counter()
        peak = peak_megabytes(work, f"repeated-{shards}", shards)
        seconds[shards].append(time.perf_counter() - started)
        report(f"  {shards * PER_SHARD:,} examples: {seconds[shards][-1]:,.1f} s, {peak:,.0f} MB")
        return peak

    score(1)  # files come into memory
    seconds[1].clear()
    peaks = in_turn(ROUNDS, report, **{str(n): (lambda n=n: score(n)) for n in SHARDS})
    cost = {
        large: tuple(
            1e6 * (more - less) / (PER_SHARD * (large - small))
            for more, less in zip(seconds[large], seconds[small], strict=True)
        )
        for small, large in pairwise(SHARDS)
    }
    growth = tuple(100 * (ratio - 1) for ratio in ratios(peaks[str(SHARDS[-1])], peaks[str(SHARDS[1])]))
    figures = [
        Figure(
            name="cost of an example, up to 10^6 over up to 10^5",
            samples=ratios(cost[1000], cost[100]),
            goal=COST_GOAL,
            better="lower",
        ),
        Figure(name="more memory at 10^6 than at 10^4", samples=growth, unit="%", goal=MEMORY_GOAL, better="lower"),
    ]
    for shards in SHARDS:
        size = f"10^{len(str(shards * PER_SHARD)) - 1}"
        figures += [
            Figure(name=f"{size} examples", samples=tuple(seconds[shards]), unit="s", better="lower"),
            Figure(name=f"{size} examples, peak", samples=peaks[str(shards)], unit="MB", better="lower"),
        ]
    return figures


def repeated(work: Path, shards: int, report: Report) -> None:
    """CIFAR-10N's shards again and again until there are so many."""
    cifar10n(work, report)
    sources = sorted((work / "data/cifar10n/train").glob("*.tar"))
    folder = work / "data" / f"repeated-{shards}"
    folder.mkdir(parents=True)
    for i in range(shards):
        os.link(sources[i % len(sources)], folder / f"{i:05d}.tar")
    entry = dict(load_config(work / "curate.toml").datasets["cifar10n"])
    entry["train"] = f"data/repeated-{shards}/{{00000..{shards - 1:05d}}}.tar"
    add_dataset(work / "curate.toml", f"repeated-{shards}", entry)


BENCHMARK = Benchmark(
    "data_size",
    "flat cost of an example and flat memory from 10^3 to 10^6 examples",
    measure,
    {"data": "shards of 1,000 PNGs of 32 px, CIFAR-10N repeated", "model": "small_resnet [8, 16, 32, 64]"},
)
