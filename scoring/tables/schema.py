"""The score table on disk: one Parquet file for each data shard. A file appears whole or not at all, so its presence
marks its shard as done.

    SCORES/dataset=D/reference=NAME-FINGERPRINT8/
        SHARD.parquet  _failures/SHARD.parquet  _errors/SHARD.json  _manifest.json

Failures are in a separate folder, so that `scores/*/*/*.parquet` matches only scores. All other names start with `_` or
`.`, which Arrow, Spark and Polars skip.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ...datasets.shards import Shard
from ...datasets.spec import DatasetSpec
from ...datasets.storage import join_url
from ...errors import without_secrets

if TYPE_CHECKING:  # who looks at a table's folder alone does not wait for torch
    import torch

    from ..models import Task

MANIFEST = "_manifest.json"
ENDING = ".parquet"
FAILURES, ERRORS = "_failures", "_errors"
FORMAT_VERSION = 1
# Columns of every score file.
ALWAYS = ("shard", "row", "key", "target_hash", "loss")
FAILURE_SCHEMA = pa.schema(
    [("shard", pa.string()), ("row", pa.int32()), ("key", pa.string()), ("stage", pa.string()), ("reason", pa.string())]
)


def vector_type(width: int) -> pa.DataType:
    """A vector of float16 in a row."""
    return pa.list_(pa.field("element", pa.float16(), nullable=False), width)


def vector_column(vectors_ND: torch.Tensor) -> pa.Array:
    """Vectors [N, D] as a column of `vector_type`. What float16 cannot hold becomes its largest number."""
    most = float(np.finfo(np.float16).max)
    flat = pa.array(vectors_ND.float().clamp(-most, most).half().cpu().numpy().ravel(), type=pa.float16())
    return pa.FixedSizeListArray.from_arrays(flat, type=vector_type(vectors_ND.shape[1]))


# Where an image lies in its shard's file, by the data set's format: the two numbers of an example's `place`.
PLACES: dict[str, tuple[pa.Field, pa.Field]] = {
    "webdataset": (pa.field("offset", pa.int64()), pa.field("length", pa.int32())),
    "parquet": (pa.field("row_group", pa.int32()), pa.field("row_in_group", pa.int32())),
}


def score_schema(task: Task, width: int = 0, places: str = "") -> pa.Schema:
    """Columns of a score file, with embeddings or logits where their `width` is given, and with the images' places in the
    shards of a format.

    `loss` is the scoring loss; `row` counts all examples of the shard, bad ones too.
    """
    columns = [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("target_hash", pa.uint64(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
    ]
    return pa.schema([*columns, *PLACES.get(places, ()), *task.fields(width)])


def table_folder(root: str, spec: DatasetSpec, reference_name: str, reference_fingerprint: str) -> str:
    """The folder of this reference's scores of this data set: hive-partitioned, one folder for each such pair."""
    plain = (
        re.sub(r"[^A-Za-z0-9_.-]+", "-", without_secrets(reference_name).rstrip("/").rsplit("/", 1)[-1]).strip("-")
        or "model"
    )
    return join_url(root, f"dataset={spec.name}", f"reference={plain}-{reference_fingerprint[:8]}")


def shards_digest(shards: Sequence[Shard]) -> str:
    """16 hex digits of every shard's name and size, to see whether the data set is still the one that was scored."""
    lines = "\n".join(sorted(f"{shard.name} {shard.size}" for shard in shards))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
