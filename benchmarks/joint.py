"""What joint selection costs beside the models: stored embeddings into tensors, and choosing. About 2 minutes on 2 cores.

Embeddings: a table of 10 shards of 10,000 rows with two embeddings of 512 float16 each, written by the project's own
writer (their content does not matter), is read, joined by key and hash and gathered into super-batches of 8,192, as
training does; and once more without the embeddings. No image is read.

Choosing: 1,638 of 8,192 pairs (filter ratio 0.8) from two models' embeddings, 16 chunks, in float32 on all cores; and the
memory that it takes at its peak in a process of its own, where one [B, B] matrix of float32 would be 268 MB and the two
models' losses both ways at least four of these.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from curate.datasets.readers import Example
from curate.datasets.shards import Shard
from curate.scoring.joint import select_jointly
from curate.scoring.losses import Pairs
from curate.scoring.settings import ContrastiveLoss
from curate.scoring.tables.join import join_shard
from curate.scoring.tables.lookup import ScoreTable, open_scores
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard, write_manifest
from curate.scoring.tasks import find_task
from curate.training.batch import stored_embeddings
from curate.training.loading import Row
from curate.units import Report
from measuring import Benchmark, Figure

SHARDS, ROWS, WIDTH = 10, 10_000, 512
B, CHOSEN = 8192, 1638
ROUNDS = 5


def measure(work: Path, report: Report) -> list[Figure]:
    folder = work / "embeddings"
    examples = write_table(folder, report)
    table = open_scores(str(folder))
    join_rate(table, examples, True)  # the files are in the page cache from here on, on both sides
    with_them, without = [], []
    for _ in range(ROUNDS):
        with_them.append(join_rate(table, examples, True))
        without.append(join_rate(table, examples, False))
    size = sum(path.stat().st_size for path in folder.glob("*.parquet")) / (SHARDS * ROWS)
    figures = [
        Figure(name="rows joined, with embeddings", samples=tuple(with_them), unit="rows/s"),
        Figure(name="rows joined, losses alone", samples=tuple(without), unit="rows/s"),
        Figure(name="the table, an example", samples=(size,), unit="bytes"),
    ]
    for loss in ("sigmoid", "softmax"):
        report(f"  choosing {CHOSEN:,} of {B:,}, {loss}")
        seconds = tuple(choose_seconds(loss) for _ in range(ROUNDS))
        figures.append(Figure(name=f"choosing {CHOSEN:,} of {B:,}, {loss}", samples=seconds, unit="s"))
        figures.append(Figure(name=f"memory of choosing, {loss}", samples=(peak_megabytes(loss),), unit="MB"))
    return figures


def write_table(folder: Path, report: Report) -> list[list[Example]]:
    """The table, and the examples that it would have been made of."""
    report(f"  writing {SHARDS * ROWS:,} rows")
    folder.mkdir()
    random = np.random.default_rng(0)
    schema = score_schema(find_task("image-text"), WIDTH)
    examples = []
    for shard in range(SHARDS):
        name = f"{shard:05d}"
        keys = [f"{shard:05d}{row:04d}" for row in range(ROWS)]
        hashes = np.frombuffer(hashlib.shake_128(name.encode()).digest(8 * ROWS), dtype=np.uint64)
        loss = random.uniform(-1, 1, ROWS).astype(np.float32)
        flat = [random.standard_normal(ROWS * WIDTH, dtype=np.float32).astype(np.float16) for _ in range(2)]
        vectors = [
            pa.FixedSizeListArray.from_arrays(pa.array(x), type=schema.field(f"{side}_embedding").type)
            for side, x in zip(("image", "text"), flat, strict=True)
        ]
        columns = [[name] * ROWS, np.arange(ROWS, dtype=np.int32), keys, hashes, loss, -loss, *vectors]
        scores = pa.Table.from_arrays([c if isinstance(c, pa.Array) else pa.array(c) for c in columns], schema=schema)
        commit_shard(str(folder), Shard(name=name, url="", size=1, bytes=1), scores, [], {"reference_fingerprint": "f"})
        examples.append(
            [Example(name, i, k, b"", "", int(h)) for i, (k, h) in enumerate(zip(keys, hashes, strict=True))]
        )
    write_manifest(str(folder), {"reference": {"fingerprint": "f"}, "embeddings": True})
    return examples


def join_rate(table: ScoreTable, examples: list[list[Example]], embeddings: bool) -> float:
    """Rows/s from the files to super-batches of B, drawn from all shards."""
    started = time.perf_counter()
    records: list[Row] = []
    for of_shard in examples:
        stored = table.shard(of_shard[0].shard, embeddings=embeddings)
        joined = join_shard(of_shard, stored)
        found = zip(joined.examples, joined.loss.tolist(), joined.positions.tolist(), strict=True)
        records += [Row(example, loss, stored, row) for example, loss, row in found]
    order = np.random.default_rng(0).permutation(len(records))
    for start in range(0, len(records) - B, B):
        chosen = order[start : start + B]
        rows = [records[i] for i in chosen]
        torch.tensor([row.reference_loss for row in rows])
        if embeddings:
            stored_embeddings(rows, WIDTH)
    return len(records) / (time.perf_counter() - started)


def embeddings_of(seed: int) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.nn.functional.normalize(torch.randn(B, WIDTH, generator=generator), dim=-1) for _ in range(2))
    return Pairs(image, text, 20.0, -5.0)


def choose_seconds(loss: ContrastiveLoss) -> float:
    online, reference = embeddings_of(0), embeddings_of(1)
    started = time.perf_counter()
    select_jointly(online, reference, CHOSEN, loss=loss, generator=torch.Generator().manual_seed(2))
    return time.perf_counter() - started


def peak_megabytes(loss: str) -> float:
    """What choosing adds to the peak of a process that holds both models' embeddings."""
    code = (
        "import sys, joint\n"
        "def peak():\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
        "online, reference = joint.embeddings_of(0), joint.embeddings_of(1)\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # forgets the peak so far
        "before = peak()\n"
        "joint.select_jointly(online, reference, joint.CHOSEN, loss=sys.argv[1])\n"
        "print((peak() - before) / 1e3)\n"
    )
    folder = os.fspath(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, loss], cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout)


BENCHMARK = Benchmark(
    "joint",
    "what joint selection costs beside the models",
    measure,
    {"table": f"{SHARDS} shards of {ROWS:,} rows, width {WIDTH}", "super_batch": B, "sub_batch": CHOSEN, "chunks": 16},
)
