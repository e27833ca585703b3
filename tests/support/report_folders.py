"""Score tables and run folders with known content, on any file system, and what a query makes of them."""

from __future__ import annotations

import io
import json

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from curate.datasets import Failure, Shard
from curate.reports import query
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard
from curate.scoring.tasks import find_task

META = {"reference_fingerprint": "f" * 16}
CONFIG = {
    "dataset": "digits",
    "policy": "learnability",
    "learner": "vit-ti",
    "online": "vit-mu",
    "reference_scores": "scores/dataset=digits/reference=good-1a2b3c4d",
    "reference": None,
    "filter_ratio": 0.5,
    "temperature": 0.1,
    "sampler": "softmax",
    "seed": 3,
    "budget_flops": 3e15,
}
SUMMARY = {
    "run": "a",
    "dataset": "digits",
    "policy": "learnability",
    "learner": "vit-ti",
    "online": "vit-mu",
    "seed": 3,
    "steps": 40,
    "examples_trained": 5120,
    "examples_scored": 10240,
    "ledger": {
        "learner_train": 12345678901234567890,
        "online_score": 2e12,
        "online_train": 3e12,
        "reference_score": 4e12,
        "reference_train": None,
        "outside": {"evaluate": 5.0},
    },
    "regimes": {"fully_amortised": 1.0, "foundation": 2.0, "pretrained_reference": 3.0, "nothing_amortised": None},
    "seconds": {"total": 12.5, "data": 1.0},
    "quality": {"top1": 0.61, "loss": 1.5},
    "counts": {"skipped": 7},
}


def put(root, path, content):
    with fsspec.open(f"{root}/{path}", "wb", auto_mkdir=True) as file:
        file.write(content if isinstance(content, bytes) else json.dumps(content).encode())


def put_table(root, path, table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    put(root, path, buffer.getvalue())


def commit(root, dataset, reference, shard, losses, task="classification", failures=(), width=0):
    rows = len(losses)
    columns = {
        "shard": [shard] * rows,
        "row": range(rows),
        "key": [f"{shard}-{i}" for i in range(rows)],
        "target_hash": [2**64 - 1 - i for i in range(rows)],
        "loss": losses,
        "label": range(rows),
        "predicted": [0] * rows,
        "similarity": [0.5] * rows,
        "image_embedding": [np.full(width, 0.5, np.float16)] * rows,
        "text_embedding": [np.full(width, 0.25, np.float16)] * rows,
    }
    schema = score_schema(find_task(task), width)
    table = pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)
    folder = f"{root}/dataset={dataset}/reference={reference}"
    commit_shard(folder, Shard(name=shard, url="x", size=1, bytes=1), table, list(failures), META)


def write_scores(root):
    broken = Failure(shard="00001", row=2, key="00001-2", stage="decode", reason="cut")
    commit(root, "digits", "good-1a2b3c4d", "00000", [0.25, 0.5])
    commit(root, "digits", "good-1a2b3c4d", "00001", [2.0, 4.0], failures=[broken])
    commit(root, "digits", "poor-99999999", "00000", [1.0])
    commit(root, "align", "clip-5e6f7a8b", "images", [-0.5], task="image-text", width=4)


def write_runs(root):
    put(root, "a/config.json", CONFIG)
    put(root, "a/summary.json", SUMMARY)
    put(root, "b/config.json", {"dataset": "digits", "policy": "uniform", "seed": 4, "temperature": "odd"})
    put(root, "c/config.json", {"dataset": "align", "reference": "runs/ref"})
    put(root, "c/summary.json", {"steps": 2, "quality": {"image_to_text_r1": 0.1, "text_to_image_r1": 0.2}})
    put(root, "d/config.json", {"policy": "uniform"})
    put(root, "d/summary.json", b'{"steps": 9')
    put(
        root,
        "a/metrics.jsonl",
        b'{"step": 1, "loss": 2.5, "online_loss": 1.25, "lr": 0.1, "seconds": {"data": 0.5, "train": 1.5}, "kept": 3}\n',
    )
    put(root, "b/metrics.jsonl", b'{"step": 1, "loss": NaN, "flops": {"learner_train": 7e9}}\n{"step": 2, "lo')
    selection = {
        "step": pa.array([1, 1], pa.int32()),
        "shard": ["00000", "00000"],
        "key": ["00000-0", "00000-1"],
        "online_loss": pa.array([1.0, 2.0], pa.float32()),
        "reference_loss": pa.array([0.25, None], pa.float32()),
        "score": pa.array([0.75, 1.5], pa.float32()),
        "selected": [True, False],
    }
    put_table(root, "a/selections/000000001-000000001.parquet", pa.table(selection))
    del selection["reference_loss"]
    put_table(root, "b/selections/000000001-000000001.parquet", pa.table(selection))


def rows(connection, sql):
    return query(connection, sql).read_all().to_pylist()
