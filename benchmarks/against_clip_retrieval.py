"""`curate score-reference` against `clip-retrieval inference`, same model and shards. About 10 minutes on 2 cores.

Emoji enlarged to JPEGs of 256 px with their captions, ViT-S-32-alt with random weights. clip-retrieval 2.45.0 is
installed from PyPI into an environment of its own (3 minutes, 6 GB), unless CLIP_RETRIEVAL names its command. It runs in
float32 on CPUs and computes embeddings; ours are stored too. Its rate is from its own stats: examples over the seconds of
reading, inference and writing, start-up left out. Ours is timed by its commits, as `score_throughput` explains. The bare
passes run over ready tensors, whole captions and all, as one process.

Goal: at least twice clip-retrieval's examples/s.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import time
import venv
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from curate.datasets.batches import DecodedBatch, decode_threads, decoded_batches
from curate.datasets.preparers import prepare as prepare_data
from curate.datasets.preparers.writer import write_shards
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import add_dataset, add_model, find_dataset, load_config
from curate.scoring.forward import best_device, best_precision, score_batch
from curate.scoring.loading import find_model, load_model, save_weights
from curate.scoring.models import Model
from curate.scoring.settings import Precision
from curate.units import Report
from measuring import Benchmark, Figure, curate, in_turn, ratios
from PIL import Image

MODEL, VERSION = "ViT-S-32-alt", "2.45.0"
SHARDS, PER_SHARD, BATCH_SIZE, SIDE, ROUNDS, BARE_SECONDS = 8, 256, 64, 256, 3, 8.0


def measure(work: Path, report: Report) -> list[Figure]:
    command = clip_retrieval(work, report)
    prepare(work, report)
    fast = best_precision(best_device())
    found = in_turn(
        ROUNDS,
        report,
        ours=lambda: our_rate(work, fast),
        ours_fp32=lambda: our_rate(work, "fp32"),
        clip_retrieval=lambda: their_rate(work, command),
        bare=lambda: bare_rate(work, fast),
        bare_fp32=lambda: bare_rate(work, "fp32"),
        decoding=lambda: decoding_rate(work),
    )
    return [
        Figure(
            name=f"ours in {fast} over clip-retrieval", samples=ratios(found["ours"], found["clip_retrieval"]), goal=2.0
        ),
        Figure(name="ours in fp32 over clip-retrieval", samples=ratios(found["ours_fp32"], found["clip_retrieval"])),
        Figure(name=f"ours over the bare pass, {fast}", samples=ratios(found["ours"], found["bare"]), goal=0.95),
        Figure(name="ours over the bare pass, fp32", samples=ratios(found["ours_fp32"], found["bare_fp32"]), goal=0.95),
        *(Figure(name=name.replace("_", " "), samples=rates, unit="examples/s") for name, rates in found.items()),
    ]


def clip_retrieval(work: Path, report: Report) -> str:
    if "CLIP_RETRIEVAL" in os.environ:
        return os.environ["CLIP_RETRIEVAL"]
    report(f"  installing clip-retrieval {VERSION}")
    venv.create(work / "rival", with_pip=True)
    pip = [str(work / "rival" / "bin" / "pip"), "install", "-q", f"clip-retrieval=={VERSION}", "setuptools<80"]
    subprocess.run(pip, check=True)
    return str(work / "rival" / "bin" / "clip-retrieval")


def prepare(work: Path, report: Report) -> None:
    toml = work / "curate.toml"
    prepare_data("emoji", work / "data", toml, report=report)
    emoji = find_dataset("emoji", load_config(toml))
    records = (r for shard in list_shards(emoji) for r in read_shard(emoji, shard) if isinstance(r, Example))
    shutil.rmtree(work / "data" / "large", ignore_errors=True)
    write_shards(work / "data" / "large", map(enlarged, islice(records, SHARDS * PER_SHARD)), per_shard=PER_SHARD)
    entry = {
        "train": f"data/large/{{00000..{SHARDS - 1:05d}}}.tar",
        "task": "image-text",
        "image": "jpg",
        "text": "txt",
    }
    add_dataset(toml, "large", entry)
    add_model(toml, "untrained", {"architecture": MODEL})
    save_weights(model_of(work, "untrained").module, work / f"{MODEL}.safetensors")
    add_model(toml, "reference", {"architecture": MODEL, "weights": f"{MODEL}.safetensors"})


def enlarged(example: Example) -> dict[str, object]:
    picture = Image.open(io.BytesIO(example.image)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return {"__key__": example.key, "jpg": buffer.getvalue(), "txt": str(example.target).encode()}


def model_of(work: Path, name: str) -> Model:
    return load_model(find_model(name, task="image-text", config=load_config(work / "curate.toml")))


def our_rate(work: Path, precision: Precision) -> float:
    out = work / "scores"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["score-reference", "--dataset", "large", "--reference", "reference", "--embeddings", "--out", out]
    curate(*arguments, "--batch-size", BATCH_SIZE, "--precision", precision, cwd=work)
    commits = sorted(path.stat().st_mtime_ns / 1e9 for path in out.glob("*/*/*.parquet"))
    assert len(commits) == SHARDS
    workers = min(decode_threads(), SHARDS)
    return (SHARDS - workers) * PER_SHARD / (commits[-1] - sum(commits[:workers]) / workers)


def their_rate(work: Path, command: str) -> float:
    out = work / "their-embeddings"
    shutil.rmtree(out, ignore_errors=True)
    options = {
        "input_dataset": f"{work}/data/large/{{00000..{SHARDS - 1:05d}}}.tar",
        "output_folder": out,
        "input_format": "webdataset",
        "clip_model": f"open_clip:{MODEL}/{work}/{MODEL}.safetensors",
        "batch_size": BATCH_SIZE,
        "num_prepro_workers": decode_threads(),
        "use_jit": False,
        "wds_number_file_per_input_file": PER_SHARD,
        "write_batch_size": SHARDS * PER_SHARD,
    }
    subprocess.run([command, "inference", *(f"--{k}={v}" for k, v in options.items())], check=True, capture_output=True)
    (stats,) = (json.loads(path.read_text()) for path in out.glob("stats/*.json"))
    assert stats["sample_count"] == SHARDS * PER_SHARD
    return float(stats["sample_count"] / stats["total_duration"])


def bare_rate(work: Path, precision: Precision) -> float:
    model, batches = model_of(work, "reference"), []
    for batch in islice(decoded(work), 2):
        captions = model.targets([example.target for example in batch.examples])
        batches.append((torch.from_numpy(batch.pixels), captions))
    ready, examples = cycle(batches), 0
    score_batch(model, *next(ready), precision=precision)
    started = time.perf_counter()
    while (seconds := time.perf_counter() - started) < BARE_SECONDS:
        examples += len(score_batch(model, *next(ready), precision=precision).loss)
    return examples / seconds


def decoding_rate(work: Path) -> float:
    started = time.perf_counter()
    return sum(len(batch.examples) for batch in decoded(work)) / (time.perf_counter() - started)


def decoded(work: Path) -> Iterator[DecodedBatch]:
    spec = find_dataset("large", load_config(work / "curate.toml"))
    records = (record for shard in list_shards(spec) for record in read_shard(spec, shard))
    return decoded_batches(records, model_of(work, "reference").geometry, BATCH_SIZE)


BENCHMARK = Benchmark(
    "against_clip_retrieval",
    f"score-reference is at least twice as fast as clip-retrieval {VERSION}",
    measure,
    {"pictures": f"{SHARDS} shards of {PER_SHARD} JPEGs of {SIDE} px", "model": MODEL, "batch_size": BATCH_SIZE},
)
