"""The step of the pipeline that runs on workers: score one shard, and commit it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import torch
from apache_beam.metrics import Metrics
from apache_beam.utils import shared

from ..datasets.batches import Look, decode_threads
from ..datasets.decoders import Decoders, default_processes
from ..datasets.readers import too_many_failures
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..datasets.storage import exists, join_url
from ..errors import FailuresError, ModelError, ShardError, StorageError
from ..scoring.forward import best_device, set_float32_products
from ..scoring.loading import load_model
from ..scoring.models import Model, ModelSpec
from ..scoring.settings import Precision
from ..scoring.shard import StartedShard, bytes_ahead
from ..scoring.tables.read import shard_counts
from ..scoring.tables.schema import ENDING
from ..scoring.tables.write import clear_error, commit_shard, note_error
from .finish import check_size, too_many_message
from .local_workers import worker_number

STAGES = ("read", "decode", "forward", "write")
# Shards that a worker has started: one in the forward pass, the others being read and decoded, as far as a machine's workers
# together hold no more decoded images than this.
MOST_STARTED, BYTES_AHEAD = 3, 2 << 30


@dataclass(frozen=True)
class ScoringJob:
    """What every worker needs. `folder` is the table's; `processes` share a machine's cores."""

    dataset: DatasetSpec
    reference: ModelSpec
    fingerprint: str
    folder: str
    vectors: bool
    places: bool
    batch_size: int
    precision: Precision
    max_failures: float
    processes: int
    forward_flops: float
    meta: dict[str, Any]


class ScoreShard(beam.DoFn):
    """Scores and commits one shard. A shard that cannot be read is recorded in the table; the others are scored."""

    def __init__(self, job: ScoringJob) -> None:
        self._job = job
        self._shared = shared.Shared()
        self._examples = Metrics.counter("curate", "examples")
        self._failures = Metrics.counter("curate", "failures")
        self._bad_shards = Metrics.counter("curate", "unreadable_shards")
        self._stages = {stage: Metrics.distribution("curate", f"{stage}_ms") for stage in STAGES}

    def setup(self) -> None:
        self._threads = max(1, decode_threads() // self._job.processes)
        torch.set_num_threads(self._threads)
        self._device = best_device(worker_number())
        if self._device.index is not None:
            torch.cuda.set_device(self._device)  # else every process would take memory of the first GPU as well
        set_float32_products(self._device, self._job.precision)
        self._model = self._shared.acquire(self._load)
        self._kept = self._model.task.kept(self._model)
        # Other engines may run several of these in one process, or in one that may have no children.
        alone = worker_number() is not None
        self._look_at = looking(self._model, self._threads) if alone and self._device.type == "cuda" else None
        each = bytes_ahead(self._model, self._job.batch_size) * self._job.processes
        self._most = min(MOST_STARTED, max(1, BYTES_AHEAD // each))
        self._started: deque[tuple[Shard, StartedShard]] = deque()
        self._judged = self._failed = 0

    def _load(self) -> Model:
        model = load_model(self._job.reference, trained=True)
        if model.fingerprint() != self._job.fingerprint:
            raise ModelError(f"'{self._job.reference.name}' changed during the job; run the same command again")
        return model.to(self._device)

    def start_bundle(self) -> None:
        self._close()  # what a bundle that failed left behind

    def process(self, shard: Shard) -> None:
        """Start a shard, and finish the oldest one where enough are started: the others are read and decoded meanwhile."""
        job = self._job
        if any(started.name == shard.name for started, _ in self._started):
            self._finish_down_to(0)
        if exists(join_url(job.folder, shard.name + ENDING)):  # a retried bundle, or a file that was written to again
            check_size(job.folder, shard, shard_counts(job.folder, shard.name).shard_size)
            return
        scoring = StartedShard(
            job.dataset,
            shard,
            self._model,
            device=self._device,
            precision=job.precision,
            batch_size=job.batch_size,
            vectors=job.vectors,
            places=job.places,
            decode_threads=self._threads,
            forward_flops=job.forward_flops,
            kept=self._kept,
            look_at=self._look_at,
        )
        self._started.append((shard, scoring))
        self._finish_down_to(self._most - 1)

    def finish_bundle(self) -> None:
        self._finish_down_to(0)

    def teardown(self) -> None:
        self._close()

    def _finish_down_to(self, left: int) -> None:
        try:
            while len(self._started) > left:
                self._finish(*self._started.popleft())
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        while self._started:
            self._started.popleft()[1].close()

    def _finish(self, shard: Shard, scoring: StartedShard) -> None:
        job = self._job
        try:
            result = scoring.finish()
        except (ShardError, StorageError) as e:
            self._bad_shards.inc()
            note_error(job.folder, shard, str(e))
            return
        finally:
            scoring.close()
        started = time.perf_counter()
        commit_shard(job.folder, shard, result.scores, result.failures, {**job.meta, "flops": result.flops})
        clear_error(job.folder, shard.name)
        for stage, seconds in {**result.seconds, "write": time.perf_counter() - started}.items():
            self._stages[stage].update(round(1000 * seconds))
        self._examples.inc(result.scores.num_rows)
        self._failures.inc(len(result.failures))
        self._judged += result.scores.num_rows + len(result.failures)
        self._failed += len(result.failures)
        if too_many_failures(self._failed, self._judged, job.max_failures):
            first = result.failures[0] if result.failures else None
            raise FailuresError(too_many_message(self._failed, self._judged, job.max_failures, job.folder, first))


def looking(model: Model, own_cores: int) -> Look | None:
    """Processes that decode for a worker whose GPU does all else, where that is faster than threads. A worker without a GPU
    needs its cores for the forward pass."""
    processes = default_processes([model.geometry], own_cores)
    way_out = "run the same command again: the shards that were finished are kept"
    return Decoders(processes, [model.geometry], way_out=way_out).look if processes else None
