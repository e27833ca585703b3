"""What a run reads of a score table with embeddings before its first step. About 8 minutes on 2 cores, 5 GB of disk.

Two synthetic tables, written by the project's own writer, with image and text embeddings of 512 float16 numbers: one of
10,000 shards of 200 rows, and one of 20 shards of 10,000 rows, as large as those of img2dataset. They lie on a file system
that counts requests and bytes, and answers at once. `whole files` reads every file and takes its columns, as version 0.1
did; `columns` is the check of today; `remembered` is the same check at a resume, or at the next run of a comparison.

Goal: 10^4 shards in under 60 seconds on two cores, and in under 5 once they passed; a hundredth of the bytes for shards of
10,000 rows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from curate.datasets.shards import Shard
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard, write_manifest
from curate.scoring.tasks import find_task
from curate.units import Report
from measuring import Benchmark, Figure

ROUNDS, WIDTH = 5, 512
MANY, FEW = (10_000, 200), (20, 10_000)
SIDES = ("whole files", "columns", "remembered")
CHECK = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
import fsspec, pyarrow as pa, pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from curate.datasets.storage import join_url, read_bytes
from curate.scoring.tables import checked
from curate.scoring.tables.lookup import open_scores
from pathlib import Path

class Counting(AbstractFileSystem):
    protocol, root_marker, bytes, requests = "counting", "/", 0, 0
    local = LocalFileSystem()
    def count(self, received):
        Counting.bytes += received
        Counting.requests += 1
    def cat_file(self, path, **options):
        content = self.local.cat_file(self._strip_protocol(path))
        self.count(len(content))
        return content
    def info(self, path, **options):
        return self.local.info(self._strip_protocol(path))
    def ls(self, path, detail=True, **options):
        self.count(0)
        return self.local.ls(self._strip_protocol(path), detail=detail)
    def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, **options):
        return File(self, path, mode, cache_options=cache_options, **options)

class File(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(end - start)
        self.fs.count(len(data))
        return data

def whole(table, name):
    content = read_bytes(join_url(table.folder, name + ".parquet"))
    pq.read_table(pa.BufferReader(content), columns=["shard", "row", "key", "loss"])

fsspec.register_implementation("counting", Counting)
folder, side, cache = sys.argv[1:]
checked.cache_folder, checked.LEAST_BYTES = lambda: Path(cache), 0
table = open_scores(f"counting://{folder}")
Counting.bytes = Counting.requests = 0
started = time.perf_counter()
if side == "whole files":
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: whole(table, name), sorted(table.shard_names())))
else:
    table.check(remember=side == "remembered")
print(time.perf_counter() - started, Counting.bytes, Counting.requests, flush=True)
os._exit(0)
"""


def measure(work: Path, report: Report) -> list[Figure]:
    figures = []
    for (shards, rows), name in ((MANY, "10^4 shards of 200 rows"), (FEW, "20 shards of 10^4 rows")):
        folder = work / "wide"
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, shards, rows, report)
        check(work, "remembered")  # the run before
        found: dict[str, list[tuple[float, float, float]]] = {side: [] for side in SIDES}
        for i in range(ROUNDS):
            for side in SIDES if i % 2 == 0 else reversed(SIDES):
                found[side].append(check(work, side))
            report(f"  round {i + 1}/{ROUNDS}: " + ", ".join(f"{s} {v[-1][0]:.3g} s" for s, v in found.items()))
        for side in SIDES:
            seconds, received, requests = (tuple(values) for values in zip(*found[side], strict=True))
            goal = {"columns": 60.0, "remembered": 5.0}.get(side) if shards == MANY[0] else None
            figures += [
                Figure(name=f"{side}, {name}", samples=seconds, unit="s", goal=goal, better="lower"),
                Figure(
                    name=f"{side}, {name}: read", samples=tuple(b / 1e6 for b in received), unit="MB", better="lower"
                ),
                Figure(name=f"{side}, {name}: requests", samples=requests, better="lower"),
            ]
    all_bytes, columns = ([b for _, b, _ in found[side]] for side in SIDES[:2])
    share = tuple(100 * a / b for a, b in zip(columns, all_bytes, strict=True))
    return [*figures, Figure(name="columns over whole files, bytes", samples=share, unit="%", goal=1.0, better="lower")]


def check(work: Path, side: str) -> tuple[float, float, float]:
    """Seconds, bytes and requests of one check in a process of its own."""
    arguments = [sys.executable, "-c", CHECK, str(work / "wide"), side, str(work / "remembered")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    return float(done[0]), float(done[1]), float(done[2])


def write(folder: Path, shards: int, rows: int, report: Report) -> None:
    report(f"  writing {shards:,} shards of {rows:,} rows")
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(write_shard, [str(folder)] * shards, range(shards), [rows] * shards, chunksize=10))
    reference = {"name": "r", "fingerprint": "f", "model": {}}
    write_manifest(str(folder), {"reference": reference, "embeddings": True, "dataset": "d", "task": "image-text"})


def write_shard(folder: str, number: int, rows: int) -> None:
    random, name = np.random.default_rng(number), f"{number:05d}"
    schema = score_schema(find_task("image-text"), WIDTH)
    vectors = pa.array(random.standard_normal(rows * WIDTH, dtype=np.float32).astype(np.float16))
    both = [name for name in schema.names if name.endswith("_embedding")]
    columns = {
        "shard": [name] * rows,
        "row": np.arange(rows, dtype=np.int32),
        "key": [f"{name}{row:05d}" for row in range(rows)],
        "target_hash": random.integers(0, 2**63, rows).astype(np.uint64),
        "loss": random.exponential(1.0, rows).astype(np.float32),
        "similarity": random.random(rows).astype(np.float32),
        **{side: pa.FixedSizeListArray.from_arrays(vectors, type=schema.field(side).type) for side in both},
    }
    scores = pa.Table.from_pydict(columns, schema=schema)
    meta = {"reference_fingerprint": "f", "dataset_fingerprint": "d", "scale": None, "bias": None, "flops": 1.0}
    commit_shard(folder, Shard(name=name, url="", size=rows, bytes=rows), scores, [], meta)


BENCHMARK = Benchmark(
    "start_up",
    "the check of 10^4 shards with embeddings in under 60 seconds, and in under 5 once they passed",
    measure,
    {"tables": f"{MANY[0]:,} x {MANY[1]:,} and {FEW[0]:,} x {FEW[1]:,} rows", "embeddings": f"2 x {WIDTH} float16"},
)
