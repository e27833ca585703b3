"""Scoring shards: reading, decoding and forward passes overlap, within a shard and across shards. Without Beam."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..datasets.batches import DecodedBatch, Look, decoded_batches, prefetch
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from .forward import embedding_width
from .models import Model, Scored, ShardScorer, Task
from .settings import Precision
from .tables.schema import PLACES, score_schema

# Decoded batches of a shard that wait for their forward pass.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class ScoredShard:
    """A shard's scores, its failures in row order, seconds by stage (`read`, `decode`, `forward`), and FLOPs spent."""

    scores: pa.Table
    failures: list[Failure]
    seconds: dict[str, float]
    flops: float


class StartedShard:
    """A shard that threads read and decode ahead, a few batches at most. `finish` runs the forward passes, in its caller's
    thread, and returns the scores. Batches do not cross shards, so several started shards give the same scores as one
    after the other.

    `forward_flops` are those of one example's whole pass. `kept` is the result of `model.task.kept(model)`, for many
    shards. With `vectors`, embeddings or a classifier's logits are stored too, with `places`
    where each image lies. Images are decoded in `decode_threads` threads, or by `look_at`.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        shard: Shard,
        model: Model,
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        vectors: bool,
        decode_threads: int,
        forward_flops: float,
        kept: Any = None,
        places: bool = True,
        look_at: Look | None = None,
    ) -> None:
        self._task = model.task
        width = (model.outputs or embedding_width(model)) if vectors else 0
        self._schema = score_schema(model.task, width, spec.format if places else "")
        self._vectors = vectors
        self._scorer = model.task.shard_scorer(
            model,
            device=device,
            precision=precision,
            batch_size=batch_size,
            forward_flops=forward_flops,
            kept=kept if kept is not None else model.task.kept(model),
        )
        records = _fitting(model, read_shard(spec, shard))
        decoded = decoded_batches(records, model.geometry, batch_size, decode_threads, look_at)
        self._batches = prefetch(_prepared(decoded, self._scorer), BATCHES_AHEAD)

    def finish(self) -> ScoredShard:
        """Raises ShardError where the shard as a whole cannot be read. An example whose loss is NaN or infinite is a failure
        of stage `loss`."""
        scorer, seconds = self._scorer, defaultdict[str, float](float)
        failures: list[Failure] = []
        rows: list[pa.RecordBatch] = []

        def take(found: Iterable[tuple[list[Example], Scored]]) -> None:
            for examples, scored in found:
                batch, bad = _rows(
                    self._task, self._schema, examples, scored if self._vectors else replace(scored, logits=None)
                )
                rows.append(batch)
                failures.extend(bad)

        for decoded in self._batches:
            for stage, spent in decoded.seconds.items():
                seconds[stage] += spent
            failures += decoded.failures
            if not decoded.examples:
                continue
            started = time.perf_counter()
            take(scorer.add(decoded))
            seconds["forward"] += time.perf_counter() - started
        started = time.perf_counter()
        take(scorer.finish())
        seconds["forward"] += time.perf_counter() - started
        failures.sort(key=lambda failure: failure.row)
        scores = pa.Table.from_batches(rows, schema=self._schema)
        return ScoredShard(scores, failures, dict(seconds), scorer.flops)

    def close(self) -> None:
        """Stop reading a shard that is not finished."""
        self._batches.close()


def score_shard(spec: DatasetSpec, shard: Shard, model: Model, **settings: Any) -> ScoredShard:
    """Score every example of a shard. Memory holds a few batches and the rows. Takes and raises what `StartedShard` does."""
    return StartedShard(spec, shard, model, **settings).finish()


def bytes_ahead(model: Model, batch_size: int) -> int:
    """What a started shard holds at most of decoded images: batches that wait, one that is handed over, one in the making."""
    return (BATCHES_AHEAD + 2) * batch_size * model.geometry.size**2 * 3


def _prepared(batches: Iterable[DecodedBatch], scorer: ShardScorer) -> Iterator[DecodedBatch]:
    for batch in batches:
        if batch.examples:
            started = time.perf_counter()
            scorer.prepare(batch)
            batch.seconds["decode"] += time.perf_counter() - started
        yield batch


def _fitting(model: Model, records: Iterable[Example | Failure]) -> Iterator[Example | Failure]:
    """The same records, but failures of stage `target` for examples for whose target the model has no loss."""
    for record in records:
        why = model.task.misfit(model, record.target) if isinstance(record, Example) else ""
        yield Failure(record.shard, record.row, record.key, "target", why) if why else record


def _rows(
    task: Task, schema: pa.Schema, examples: list[Example], scored: Scored
) -> tuple[pa.RecordBatch, list[Failure]]:
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
        **_places(schema, examples),
        **task.columns(examples, scored),
    }
    batch = pa.RecordBatch.from_pydict({name: columns[name] for name in schema.names}, schema=schema)
    return (batch if not bad else batch.filter(pa.array(finite))), bad


def _places(schema: pa.Schema, examples: list[Example]) -> dict[str, list[int | None]]:
    for first, second in PLACES.values():
        if first.name in schema.names:
            pairs = [example.place or (None, None) for example in examples]
            return {first.name: [pair[0] for pair in pairs], second.name: [pair[1] for pair in pairs]}
    return {}
