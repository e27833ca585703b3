"""Where `score-reference`'s CPU time goes, which neighbours on the machine hardly disturb. About 1 minute.

One thread scores shards with the code that every Beam worker runs (`score_shard`: read, decode, resize, forward,
rows of the table), then runs the same forward pass over ready tensors. CPU seconds of the process are counted, not time
on the clock. The share says what `score_throughput` can reach at most on a CPU, where all cores do all the work; what
that one misses beyond it is waiting and Beam.

No goal of its own.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import torch
from curate.datasets.batches import decoded_batches
from curate.datasets.readers import read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import find_dataset, load_config
from curate.scoring.forward import autocast, best_device, best_precision
from curate.scoring.loading import find_model, load_model
from curate.scoring.shard import score_shard
from curate.units import Report
from measuring import Benchmark, Figure, in_turn, ratios
from score_throughput import BATCH_SIZE, MODEL, PER_SHARD, prepare

ROUNDS, SHARDS = 5, 2


def measure(work: Path, report: Report) -> list[Figure]:
    prepare(work, report)
    config = load_config(work / "curate.toml")
    spec, device = find_dataset("pictures", config), best_device()
    shards, precision = list_shards(spec)[:SHARDS], best_precision(device)
    model = load_model(find_model(MODEL, task="classification", num_classes=10, config=config))
    settings = {"device": device, "precision": precision, "batch_size": BATCH_SIZE}

    def ours() -> float:
        started = time.process_time()
        for shard in shards:
            score_shard(spec, shard, model, **settings, vectors=False, decode_threads=1, forward_flops=0.0)
        return 1000 * (time.process_time() - started) / (SHARDS * PER_SHARD)

    def decode() -> float:
        started = time.process_time()
        for shard in shards:
            list(decoded_batches(read_shard(spec, shard), model.geometry, BATCH_SIZE, 1))
        return 1000 * (time.process_time() - started) / (SHARDS * PER_SHARD)

    decoded = decoded_batches(read_shard(spec, shards[0]), model.geometry, BATCH_SIZE, 1)
    ready = [model.normalize(torch.from_numpy(batch.pixels)) for batch in islice(decoded, 4)]

    def bare() -> float:
        started = time.process_time()
        with torch.inference_mode(), autocast(device, precision):
            examples = sum(len(model.module(batch)) for _ in range(SHARDS) for batch in ready)
        return 1000 * (time.process_time() - started) / examples

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bare()
        found = in_turn(ROUNDS, report, ours=ours, decode=decode, bare=bare)
    finally:
        torch.set_num_threads(threads)
    what, unit = f"{MODEL} {precision}", "CPU ms an example"
    return [
        Figure(name=f"forward's share of score_shard's CPU time, {what}", samples=ratios(found["bare"], found["ours"])),
        Figure(name=f"score_shard, {what}", samples=found["ours"], unit=unit),
        Figure(name="reading, decoding and resizing", samples=found["decode"], unit=unit),
        Figure(name=f"forward pass alone, {what}", samples=found["bare"], unit=unit),
    ]


BENCHMARK = Benchmark(
    "score_cpu",
    "where score-reference's CPU time goes (no goal)",
    measure,
    {"pictures": "JPEGs of 256 px", "model": f"{MODEL} at 224 px", "batch_size": BATCH_SIZE},
)
