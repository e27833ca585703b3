"""`curate score-reference` against the straightforward script with webdataset's loader. About 4 minutes on 2 cores.

Both score the same shards with the same model, batch size and precision on all cores. The script is
`webdataset_script.py`: two DataLoader workers decode, one process runs the forward pass with two threads, losses stay
in memory; it is timed from its first batch's request to its last loss. Ours is timed by its commits, as
`score_throughput` explains; it also writes them.

Goal: at least 1.3 times the script's examples/s.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from curate.scoring.forward import best_device, best_precision
from curate.scoring.settings import Precision
from curate.units import Report
from measuring import Benchmark, Figure, in_turn, ratios
from score_throughput import BATCH_SIZE, MODEL, PER_SHARD, SHARDS, pipeline_rate, prepare

ROUNDS = 3
GOAL = 1.3


def measure(work: Path, report: Report) -> list[Figure]:
    prepare(work, report)
    precision = best_precision(best_device())
    found = in_turn(
        ROUNDS,
        report,
        ours=lambda: pipeline_rate(work, MODEL, precision),
        script=lambda: script_rate(work, precision),
    )
    what = f"{MODEL} {precision}"
    return [
        Figure(name=f"score-reference over the script, {what}", samples=ratios(**_sides(found)), goal=GOAL),
        Figure(name=f"score-reference, {what}", samples=found["ours"], unit="examples/s"),
        Figure(name=f"script with webdataset's loader, {what}", samples=found["script"], unit="examples/s"),
    ]


def script_rate(work: Path, precision: Precision) -> float:
    shards = f"{work}/data/pictures/{{00000..{SHARDS - 1:05d}}}.tar"
    script = Path(__file__).with_name("webdataset_script.py")
    arguments = [shards, f"{work}/{MODEL}.safetensors", f"--model={MODEL}", f"--precision={precision}"]
    done = subprocess.run(
        [sys.executable, script, *arguments, f"--batch-size={BATCH_SIZE}"], check=True, stdout=subprocess.PIPE
    )
    return float(done.stdout)


def _sides(found: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    return {"over": found["ours"], "under": found["script"]}


BENCHMARK = Benchmark(
    "against_webdataset",
    "score-reference is at least 1.3 times as fast as a straightforward script with webdataset's loader",
    measure,
    {
        "pictures": f"{SHARDS} shards of {PER_SHARD} JPEGs of 256 px",
        "model": f"{MODEL} at 224 px",
        "batch_size": BATCH_SIZE,
    },
)
