"""`curate inspect` on score tables of 10^7 rows: seconds and peak memory of the whole command. About 90 seconds on 2 cores.

The digits are scored by a small reference. Its real rows (label, prediction and loss together) are drawn again and again into
1,000 shards of 10,000 rows, by the project's own writer. The images of these shards do not exist, so the page has none.
By default `inspect` reads whole shards of two million rows in all; `--rows 10000000` reads all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from curate.datasets.shards import Shard
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard, write_manifest
from curate.scoring.tasks import find_task
from curate.units import Report
from measuring import Benchmark, Figure, curate

ROUNDS = int(os.environ.get("CURATE_ROUNDS", "3"))
SHARDS, ROWS = 1_000, 10_000
LOOKS = {
    "a table, as by default": ("a",),
    "a table, all rows": ("a", "--rows", SHARDS * ROWS),
    "two tables, as by default": ("a", "b"),
}
MEASURED = """
import atexit, re
from pathlib import Path
from curate.__main__ import main
status, peak = Path("/proc/self/status"), Path("peak")
atexit.register(lambda: peak.write_text(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]))
main()
"""


def measure(work: Path, report: Report) -> list[Figure]:
    report("  scoring the digits")
    curate("prepare", "digits", cwd=work)
    train = ("train", "--dataset", "digits-curated", "--learner", "small_resnet_w8", "--batch-size", 32)
    curate(*train, "--steps", 60, "--name", "reference", cwd=work)
    curate("score-reference", "--dataset", "digits", "--reference", "runs/reference", cwd=work)
    started = time.perf_counter()
    for seed, name in enumerate(("a", "b")):
        report(f"  writing table {name}: {SHARDS:,} shards of {ROWS:,} rows")
        write(work / "scores", work / name, seed)
    figures = [Figure(name="writing two tables of 10^7 rows", samples=(time.perf_counter() - started,), unit="s")]
    for name, arguments in LOOKS.items():
        found = [look(work, arguments) for _ in range(ROUNDS)]
        report(f"  {name}: {found}")
        seconds, megabytes = zip(*found, strict=True)
        figures += [
            Figure(name=f"{name}", samples=seconds, unit="s", better="lower"),
            Figure(name=f"{name}, peak memory", samples=megabytes, unit="MB", better="lower"),
        ]
    return figures


def write(scores: Path, folder: Path, seed: int) -> None:
    """A table of the digits' reference whose rows are drawn from its real ones."""
    (below,) = scores.glob("*/*")
    table = open_scores(str(below))
    loss, label, predicted = (column.to_numpy() for column in table.read(["loss", "label", "predicted"]).columns)
    folder.mkdir()
    schema = score_schema(find_task("classification"))
    known = {"dataset_fingerprint": table.manifest["dataset_fingerprint"], "scale": None, "bias": None, "flops": 1.0}
    about = {"reference_fingerprint": table.reference_fingerprint, **known}
    for number in range(SHARDS):
        random, name = np.random.default_rng((seed, number)), f"{number:05d}"
        drawn = np.random.default_rng(number).integers(0, len(loss), ROWS)  # the same examples in both tables
        columns = {
            "shard": [name] * ROWS,
            "row": np.arange(ROWS, dtype=np.int32),
            "key": [f"{name}{row:05d}" for row in range(ROWS)],
            "target_hash": label[drawn].astype(np.uint64),
            "loss": (loss[drawn] * random.uniform(0.8, 1.25, ROWS)).astype(np.float32),
            "label": label[drawn].astype(np.int32),
            "predicted": predicted[drawn].astype(np.int32),
        }
        shard = Shard(name=name, url="", size=ROWS, bytes=ROWS)
        commit_shard(str(folder), shard, pa.Table.from_pydict(columns, schema=schema), [], about)
    write_manifest(str(folder), table.manifest)


def look(work: Path, arguments: tuple[object, ...]) -> tuple[float, float]:
    """Seconds and peak megabytes of the command. A process begins with its parent's peak as `ru_maxrss`; VmHWM is its own."""
    called = [sys.executable, "-c", MEASURED, "inspect", *map(str, arguments), "--out", "page"]
    started = time.perf_counter()
    subprocess.run(called, cwd=work, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started, float((work / "peak").read_text()) / 1e3


BENCHMARK = Benchmark(
    "inspect_pages",
    "curate inspect on 10^7 rows (no goal)",
    measure,
    {"rows": f"{SHARDS:,} x {ROWS:,}", "sampled": "2,000,000 rows"},
)
