"""How much of a bare forward loop's speed `curate score-reference` keeps, on all cores. About 8 minutes on 2 cores.

Ours is the real command: Beam with a worker process a core, reading shards of 256-pixel JPEGs, decoding, resizing to
224, the forward pass of a timm model, committing every shard. The bare loop runs the same forward pass, at the same
batch size and precision, over normalised tensors that lie ready in memory: no reading, no decoding, no loss. It is run
as one process with all cores as threads and as one single-threaded process a core; the faster is the bound.

Start-up is left out on both sides. For ours, only a worker's commits are looked at: with W workers, the first W
shards to be committed are their warm-up, and the other K - W shards take W x (last commit - mean of the first W
commits) worker-seconds. The bare loop's warm-up batch is not timed either.

Precision is the command's default for the hardware (bf16 on CPUs with AMX). On a CPU, decoding takes time from the
very cores that run the forward pass: the faster that is, the harder the goal. So there are two models: ViT-S/16, the
paper's middle scorer, and resnet18, which takes half its time.

Goal: at least 0.90 of the bare loop's examples/s.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from curate.datasets.batches import decode_threads, decoded_batches
from curate.datasets.readers import read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import find_dataset, load_config
from curate.scoring.forward import autocast, best_device, best_precision
from curate.scoring.loading import find_model, load_model
from curate.scoring.settings import Precision
from curate.units import Report
from data import pictures, reference_with_weights
from measuring import Benchmark, Figure, curate, in_turn, ratios

SHARDS, PER_SHARD, BATCH_SIZE, ROUNDS = 8, 240, 32, 3
MODEL = "resnet18"
MODELS = (MODEL, "vit_small_patch16_224")
BARE_SECONDS = 6.0
GOAL = 0.90


def measure(work: Path, report: Report) -> list[Figure]:
    prepare(work, report)
    return [figure for model in MODELS for figure in measure_model(work, report, model)]


def measure_model(work: Path, report: Report, model: str) -> list[Figure]:
    report(f"  {model}")
    cores, precision = decode_threads(), best_precision(best_device())
    found = in_turn(
        ROUNDS,
        report,
        ours=lambda: pipeline_rate(work, model, precision),
        bare_processes=lambda: bare_rate(work, model, precision, processes=cores, threads=1),
        bare_threads=lambda: bare_rate(work, model, precision, processes=1, threads=cores),
    )
    bound = [max(pair) for pair in zip(found["bare_processes"], found["bare_threads"], strict=True)]
    what = f"{model} {precision}"
    return [
        Figure(name=f"score-reference over bare loop, {what}", samples=ratios(found["ours"], bound), goal=GOAL),
        Figure(name=f"score-reference, {what}", samples=found["ours"], unit="examples/s"),
        Figure(name=f"bare loop, a process a core, {what}", samples=found["bare_processes"], unit="examples/s"),
        Figure(name=f"bare loop, one process, {what}", samples=found["bare_threads"], unit="examples/s"),
    ]


def prepare(work: Path, report: Report) -> None:
    pictures(work, report, shards=SHARDS, per_shard=PER_SHARD)
    for model in MODELS:
        reference_with_weights(work, model, model)


def pipeline_rate(work: Path, model: str, precision: Precision) -> float:
    """Examples/s of one whole run of the command, from its commits."""
    out = work / "scores"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["score-reference", "--dataset", "pictures", "--reference", model, "--out", out]
    curate(*arguments, "--batch-size", BATCH_SIZE, "--precision", precision, cwd=work)
    return rate_from_commits(sorted(path.stat().st_mtime_ns / 1e9 for path in out.glob("*/*/*.parquet")))


def rate_from_commits(commits: list[float]) -> float:
    assert len(commits) == SHARDS
    workers = min(decode_threads(), SHARDS)
    per_worker = commits[-1] - sum(commits[:workers]) / workers
    return (SHARDS - workers) * PER_SHARD / per_worker


def bare_rate(work: Path, model: str, precision: Precision, *, processes: int, threads: int) -> float:
    """Examples/s of `processes` loops with `threads` each, started together; the sum of their own rates."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=_bare_loop, args=(work, model, precision, threads, barrier, rates))
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    total: float = sum(rates.get(timeout=300) for _ in children)
    for child in children:
        child.join()
    return total


def _bare_loop(work: Path, name: str, precision: Precision, threads: int, barrier: Any, rates: Any) -> None:
    torch.set_num_threads(threads)
    config = load_config(work / "curate.toml")
    model = load_model(find_model(name, task="classification", num_classes=10, config=config))
    spec = find_dataset("pictures", config)
    decoded = decoded_batches(read_shard(spec, list_shards(spec)[0]), model.geometry, BATCH_SIZE)
    ready = [model.normalize(torch.from_numpy(batch.pixels)) for batch in islice(decoded, 2)]
    batches, examples = cycle(ready), 0
    with torch.inference_mode(), autocast(best_device(), precision):
        model.module(next(batches))
        barrier.wait()
        started = time.perf_counter()
        while (seconds := time.perf_counter() - started) < BARE_SECONDS:
            examples += len(model.module(next(batches)))
    rates.put(examples / seconds)


BENCHMARK = Benchmark(
    "score_throughput",
    "score-reference reaches at least 0.90 of a bare forward loop's examples/s",
    measure,
    {
        "pictures": f"{SHARDS} shards of {PER_SHARD} JPEGs of 256 px",
        "models": f"{', '.join(MODELS)} at 224 px",
        "batch_size": BATCH_SIZE,
    },
)
