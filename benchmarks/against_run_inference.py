"""`curate score-reference` against Beam's own RunInference on the same shards. About 6 minutes on 2 cores.

The rival is what Beam's documentation leads to: read and decode each example, RunInference with PytorchModelHandlerTensor
(keyed, batches of up to the same size), cross-entropy, text files of key and loss. It runs on the same FnApiRunner with a
worker process a core, in the same precision, one thread a worker. Both sides are whole commands at two sizes of the data;
their rate is the examples that the larger one has more, over the seconds that it takes more, so that start-up drops out.

Goal: at least as fast as RunInference.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from curate.datasets.batches import decode_threads
from curate.datasets.spec import add_dataset, load_config
from curate.scoring.forward import best_device, best_precision
from curate.units import Report
from data import pictures, reference_with_weights
from measuring import Benchmark, Figure, curate, in_turn, ratios

MODEL, PER_SHARD, BATCH_SIZE, ROUNDS = "resnet18", 240, 32, 3
FEW, MANY = 2, 10


def measure(work: Path, report: Report) -> list[Figure]:
    pictures(work, report, shards=MANY, per_shard=PER_SHARD)
    reference_with_weights(work, MODEL, MODEL)
    few = dict(load_config(work / "curate.toml").datasets["pictures"])
    few["train"] = f"data/pictures/{{00000..{FEW - 1:05d}}}.tar"
    add_dataset(work / "curate.toml", "few-pictures", few)
    precision = best_precision(best_device())
    found = in_turn(
        ROUNDS,
        report,
        ours=lambda: rate(lambda name: ours(work, name, precision)),
        run_inference=lambda: rate(lambda name: run_inference(work, name, precision)),
    )
    what = f"{MODEL} {precision}"
    return [
        Figure(
            name=f"score-reference over RunInference, {what}",
            samples=ratios(found["ours"], found["run_inference"]),
            goal=1.0,
        ),
        Figure(name=f"score-reference, {what}", samples=found["ours"], unit="examples/s"),
        Figure(name=f"RunInference, {what}", samples=found["run_inference"], unit="examples/s"),
    ]


def rate(score: Callable[[str], None]) -> float:
    seconds = {}
    for name in ("few-pictures", "pictures"):
        started = time.perf_counter()
        score(name)
        seconds[name] = time.perf_counter() - started
    return (MANY - FEW) * PER_SHARD / (seconds["pictures"] - seconds["few-pictures"])


def ours(work: Path, dataset: str, precision: str) -> None:
    out = work / "scores"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["score-reference", "--dataset", dataset, "--reference", MODEL, "--out", out]
    curate(*arguments, "--batch-size", BATCH_SIZE, "--precision", precision, cwd=work)


def run_inference(work: Path, dataset: str, precision: str) -> None:
    out = work / "run-inference"
    shutil.rmtree(out, ignore_errors=True)
    script = Path(__file__).with_name("run_inference_script.py")
    arguments = [work, dataset, MODEL, precision, BATCH_SIZE, out, decode_threads()]
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True, capture_output=True)
    written = sum(len(path.read_text().splitlines()) for path in out.glob("losses*"))
    assert written == PER_SHARD * (FEW if dataset.startswith("few") else MANY)


BENCHMARK = Benchmark(
    "against_run_inference",
    "score-reference is at least as fast as Beam's RunInference for the same job",
    measure,
    {
        "pictures": f"{FEW} and {MANY} shards of {PER_SHARD} JPEGs of 256 px",
        "model": f"{MODEL} at 224 px",
        "batch_size": BATCH_SIZE,
    },
)
