"""Scoring one shard: read, decode and forward overlapped, one table of scores out. Knows nothing of Beam."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from ..datasets.batches import DecodedBatch, decoded_batches, prefetch
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..scoring.forward import Precision, Scored, embedding_width, score_batch, target_tensor
from ..scoring.models import Model
from ..scoring.table import score_schema


@dataclass(frozen=True)
class ScoredShard:
    """A shard's scores, its failures in row order, and seconds by stage (`read`, `decode`, `forward`)."""

    scores: pa.Table
    failures: list[Failure]
    seconds: dict[str, float]


def score_shard(
    spec: DatasetSpec,
    shard: Shard,
    model: Model,
    *,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    embeddings: bool,
    decode_threads: int,
) -> ScoredShard:
    """Score every example of a shard. Batches cross neither shards nor tasks; memory holds a few batches and the rows.

    Raises ShardError where the shard as a whole cannot be read. An example whose loss is NaN or infinite is a failure
    of stage `loss`.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    failures: list[Failure] = []
    schema = score_schema(spec.task, embedding_width(model) if embeddings else 0)
    batches: list[pa.RecordBatch] = []
    for decoded, targets in prefetch(_prepared(spec, shard, model, batch_size, decode_threads)):
        for stage, spent in decoded.seconds.items():
            seconds[stage] += spent
        failures += decoded.failures
        if not decoded.examples:
            continue
        started = time.perf_counter()
        pixels = torch.from_numpy(decoded.pixels).to(device, non_blocking=True)
        scored = score_batch(model, pixels, targets.to(device, non_blocking=True), precision=precision)
        batch, bad = _rows(schema, decoded.examples, scored)
        seconds["forward"] += time.perf_counter() - started
        failures += bad
        batches.append(batch)
    failures.sort(key=lambda failure: failure.row)
    return ScoredShard(pa.Table.from_batches(batches, schema=schema), failures, dict(seconds))


def _prepared(
    spec: DatasetSpec, shard: Shard, model: Model, batch_size: int, threads: int
) -> Iterator[tuple[DecodedBatch, torch.Tensor]]:
    """Decoded batches with their targets as tensors; runs ahead in the prefetching thread."""
    for decoded in decoded_batches(read_shard(spec, shard), model.geometry, batch_size, threads):
        yield decoded, target_tensor(model, [example.target for example in decoded.examples])


def _rows(schema: pa.Schema, examples: list[Example], scored: Scored) -> tuple[pa.RecordBatch, list[Failure]]:
    loss = scored.loss.float().cpu().numpy()
    finite = np.isfinite(loss)
    bad = [
        Failure(e.shard, e.row, e.key, "loss", f"the reference's loss is {value}")
        for e, value in zip(examples, loss.tolist(), strict=True)
        if not math.isfinite(value)
    ]
    columns: dict[str, object] = {
        "shard": [e.shard for e in examples],
        "row": [e.row for e in examples],
        "key": [e.key for e in examples],
        "target_hash": np.array([e.target_hash for e in examples], dtype=np.uint64),
        "loss": loss,
    }
    if scored.predicted is not None:
        columns["label"] = [e.target for e in examples]
        columns["predicted"] = scored.predicted.to(torch.int32).cpu().numpy()
    if scored.similarity is not None:
        columns["similarity"] = scored.similarity.float().cpu().numpy()
    for name in ("image_embedding", "text_embedding"):
        vectors = getattr(scored, name)
        if name in schema.names and vectors is not None:
            flat = pa.array(vectors.half().cpu().numpy().ravel(), type=pa.float16())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type)
    batch = pa.RecordBatch.from_pydict({name: columns[name] for name in schema.names}, schema=schema)
    return (batch if not bad else batch.filter(pa.array(finite))), bad
