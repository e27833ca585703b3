"""A score table of 10^8 rows in DuckDB, and one of 10^5 shards before a resumed job. About 12 minutes on 2 cores, 6 GB.

The tables are synthetic, written by the project's own writer: 10,000 shards of 10,000 rows, and 100,000 small shards.
Every query runs in a process of its own, whose peak memory is taken from the kernel. `curate sql`'s own views are asked.
The look before a resumed job is what `score-reference` does when everything is done but one shard: listing what is
there, with counts kept from the job before (`kept`), and without them (`opened`).

Goal: that look in under 10 seconds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from curate.datasets.shards import Shard
from curate.scoring.tables.counts import KEPT
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard, write_manifest
from curate.scoring.tasks import find_task
from curate.units import Report
from measuring import Benchmark, Figure

ROUNDS = 3
SHARDS, ROWS, SMALL_SHARDS, SMALL_ROWS, METADATA_ROWS = 10_000, 10_000, 100_000, 10, 10_000_000
QUERIES = {
    "coverage": "SELECT shard FROM scores GROUP BY shard HAVING count(*) <> max(row) + 1",
    "quantiles by label": "SELECT label, quantile_cont(loss, [0.01, 0.5, 0.99]) FROM scores GROUP BY label",
    "top 100": "SELECT shard, key, loss FROM scores ORDER BY loss DESC LIMIT 100",
    "join with 10^7 rows of metadata": (
        "SELECT m.source, count(*), avg(s.loss) FROM scores s JOIN 'metadata.parquet' m USING (key) GROUP BY m.source"
    ),
}
PEAK = "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"


def measure(work: Path, report: Report) -> list[Figure]:
    big, small = (work / name / "dataset=d" / "reference=r-00000000" for name in ("big", "small"))
    started = time.perf_counter()
    write(big, SHARDS, ROWS, report)
    written = time.perf_counter() - started
    size = sum(path.stat().st_size for path in big.glob("*.parquet"))
    metadata(work / "metadata.parquet")
    figures = [
        Figure(name="writing 10^8 rows", samples=(written,), unit="s"),
        Figure(name="bytes a row", samples=(size / (SHARDS * ROWS),), unit="B"),
    ]
    for name, query in QUERIES.items():
        report(f"  {name}")
        seconds, megabytes = repeatedly(partial(ask, work, query))
        figures += [
            Figure(name=f"{name}, 10^8 rows", samples=seconds, unit="s", better="lower"),
            Figure(name=f"{name}, peak memory", samples=megabytes, unit="MB", better="lower"),
        ]
    write(small, SMALL_SHARDS, SMALL_ROWS, report)
    kept = small / KEPT[0]
    for name, goal in (("opened", None), ("kept", 10.0)):
        report(f"  10^5 shards, counts {name}")
        seconds, megabytes = repeatedly(partial(look, small, forget=kept if name == "opened" else None))
        figures += [
            Figure(name=f"10^5 shards, counts {name}", samples=seconds, unit="s", goal=goal, better="lower"),
            Figure(name=f"10^5 shards, counts {name}, memory", samples=megabytes, unit="MB", better="lower"),
        ]
    return figures


def repeatedly(measure_once: Callable[[], tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """All seconds, all megabytes."""
    found = [measure_once() for _ in range(ROUNDS)]
    return tuple(seconds for seconds, _ in found), tuple(megabytes for _, megabytes in found)


def write(folder: Path, shards: int, rows: int, report: Report) -> None:
    report(f"  writing {shards:,} shards of {rows:,} rows")
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(write_shard, [str(folder)] * shards, range(shards), [rows] * shards, chunksize=100))
    reference = {"name": "r", "fingerprint": "f", "model": {}}
    write_manifest(str(folder), {"reference": reference, "embeddings": False, "dataset": "d"})


def write_shard(folder: str, number: int, rows: int) -> None:
    random, name = np.random.default_rng(number), f"{number:05d}"
    labels = random.integers(0, 1000, rows, dtype=np.int32)
    columns = {
        "shard": [name] * rows,
        "row": np.arange(rows, dtype=np.int32),
        "key": [f"{name}{row:05d}" for row in range(rows)],
        "target_hash": labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        "loss": random.exponential(1.0, rows).astype(np.float32),
        "label": labels,
        "predicted": np.where(random.random(rows) < 0.7, labels, 0).astype(np.int32),
    }
    scores = pa.Table.from_pydict(columns, schema=score_schema(find_task("classification")))
    meta = {"reference_fingerprint": "f", "dataset_fingerprint": "d", "scale": None, "bias": None, "flops": 1.0}
    commit_shard(folder, Shard(name=name, url="", size=rows, bytes=rows), scores, [], meta)


def metadata(path: Path) -> None:
    """A source for every tenth key."""
    keys = [
        f"{shard:05d}{row:05d}" for shard in range(SHARDS) for row in range(0, ROWS, SHARDS * ROWS // METADATA_ROWS)
    ]
    sources = np.random.default_rng(0).choice(["web", "books", "stock", "forum"], len(keys))
    pq.write_table(pa.table({"key": keys, "source": sources}), path)


def ask(work: Path, query: str) -> tuple[float, float]:
    """Seconds and peak megabytes of a query through `curate sql`'s views, both without starting Python."""
    code = (
        "import sys, time\nfrom curate.reports import connect, query\n"
        "connection = connect(scores='big', runs='none')\n"
        # `python -c` counts as interactive, where DuckDB draws a bar on standard output.
        "connection.execute('SET enable_progress_bar = false')\nstarted = time.perf_counter()\n"
        f"query(connection, sys.argv[1]).read_all()\nprint(time.perf_counter() - started)\n{PEAK}"
    )
    return _run(code, query, work)


def look(folder: Path, forget: Path | None) -> tuple[float, float]:
    """Seconds and peak megabytes. `forget` is the folder of counts from the look before."""
    if forget is not None:
        shutil.rmtree(forget, ignore_errors=True)
    code = (
        "import sys, time\nfrom curate.scoring.tables.counts import all_counts\n"
        "from curate.scoring.tables.read import finished_shards\n"
        "started = time.perf_counter()\ndone = finished_shards(sys.argv[1])\ncounts = all_counts(sys.argv[1], keep=True)\n"
        "assert len(counts) == len(done)\nsum(c.examples for c in counts.values())\n"
        f"print(time.perf_counter() - started)\n{PEAK}"
    )
    return _run(code, str(folder), folder)


def _run(code: str, argument: str, folder: Path) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", code, argument], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.split()
    return float(done[0]), float(done[1]) / 1e3


BENCHMARK = Benchmark(
    "big_table",
    "10^8 rows in DuckDB; a look at 10^5 finished shards in under 10 seconds",
    measure,
    {"rows": f"{SHARDS:,} x {ROWS:,}", "small shards": f"{SMALL_SHARDS:,} x {SMALL_ROWS}", "metadata": METADATA_ROWS},
)
