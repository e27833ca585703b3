"""Scoring one shard: read, decode and forward overlapped, one table of scores out. Knows nothing of Beam."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from ..datasets.batches import decoded_batches, prefetch
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from .captions import CaptionEncoder
from .forward import Scored, embedding_width, score_batch, target_tensor
from .models import Model
from .pairs import PairScorer
from .settings import Precision
from .tables.schema import score_schema


@dataclass(frozen=True)
class ScoredShard:
    """A shard's scores, its failures in row order, seconds by stage (`read`, `decode`, `forward`), and FLOPs spent."""

    scores: pa.Table
    failures: list[Failure]
    seconds: dict[str, float]
    flops: float


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
    forward_flops: float,
    captions: CaptionEncoder | None = None,
) -> ScoredShard:
    """Score every example of a shard. Batches cross neither shards nor tasks; memory holds a few batches and the rows.

    `forward_flops` are those of one example's whole pass. `captions`, of the same model, spares measuring again what a
    shard before measured. Raises ShardError where the shard as a whole cannot be read. An example whose loss is NaN or
    infinite is a failure of stage `loss`.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    failures: list[Failure] = []
    schema = score_schema(spec.task, embedding_width(model) if embeddings else 0)
    batches: list[pa.RecordBatch] = []
    flops = 0.0
    pairs: PairScorer | None = None
    if spec.task == "image-text":
        captions = captions or CaptionEncoder(model)
        pairs = PairScorer(model, captions, forward_flops - captions.flops_of_all, device, precision, batch_size)
    for decoded in prefetch(decoded_batches(read_shard(spec, shard), model.geometry, batch_size, decode_threads)):
        for stage, spent in decoded.seconds.items():
            seconds[stage] += spent
        failures += decoded.failures
        if not decoded.examples:
            continue
        started = time.perf_counter()
        if pairs is not None:
            pairs.add(decoded)
        else:
            pixels = torch.from_numpy(decoded.pixels).to(device, non_blocking=True)
            labels = target_tensor(model, [example.target for example in decoded.examples]).to(device)
            scored = score_batch(model, pixels, labels, precision=precision)
            _append(batches, failures, schema, decoded.examples, scored)
            flops += forward_flops * len(decoded.examples)
        seconds["forward"] += time.perf_counter() - started
    if pairs is not None and pairs.examples:
        started = time.perf_counter()
        _append(batches, failures, schema, pairs.examples, pairs.scored())
        flops = pairs.flops
        seconds["forward"] += time.perf_counter() - started
    failures.sort(key=lambda failure: failure.row)
    return ScoredShard(pa.Table.from_batches(batches, schema=schema), failures, dict(seconds), flops)


def _append(
    batches: list[pa.RecordBatch], failures: list[Failure], schema: pa.Schema, examples: list[Example], scored: Scored
) -> None:
    batch, bad = _rows(schema, examples, scored)
    batches.append(batch)
    failures += bad


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
