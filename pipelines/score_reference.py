"""`curate score-reference`: one Beam pass over a data set, writing the reference's losses as a score table."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import apache_beam as beam
import torch
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.utils import shared

from .. import errors
from ..datasets.batches import decode_threads
from ..datasets.readers import read_shard, too_many_failures
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import DatasetSpec
from ..datasets.storage import exists, filesystem, is_local, join_url, make_folder
from ..errors import CurateError, FailuresError, ModelError, ShardError, TableError
from ..scoring.captions import CaptionEncoder
from ..scoring.counts import all_counts
from ..scoring.flops import Flops, forward_flops
from ..scoring.forward import Precision, best_device, best_precision, check_precision
from ..scoring.models import Model, ModelSpec, load_model
from ..scoring.run_costs import recorded_train_flops
from ..scoring.table import (
    ENDING,
    LOSS_NAMES,
    clear_error,
    commit_shard,
    finished_shards,
    note_error,
    read_manifest,
    shards_digest,
    table_folder,
    write_manifest,
    writing,
)
from .committed import Report, watch
from .finish import finish, too_many_message
from .runner import release, runner_of
from .score_shard import score_shard

STAGES = ("read", "decode", "forward", "write")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What to score and how. `max_failures` is a share of the examples read; `runner_options` are Beam's own."""

    dataset: DatasetSpec
    reference: ModelSpec
    out: str = "scores"
    embeddings: bool = False
    batch_size: int = 128
    precision: Precision | None = None
    max_failures: float = 0.01
    runner_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_precision(self.precision)


@dataclass(frozen=True)
class ScoreSummary:
    """What one call of `score_reference` left: the table's folder and totals, and this call's own work."""

    folder: str
    shards: int
    examples: int
    failures: int
    scored_now: int
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """What every worker is told."""

    dataset: DatasetSpec
    reference: ModelSpec
    fingerprint: str
    folder: str
    embeddings: bool
    batch_size: int
    precision: Precision
    max_failures: float
    processes: int  # that share a machine's cores
    forward_flops: float
    meta: dict[str, Any]


class ScoreShard(beam.DoFn):
    """Scores and commits one shard. A shard that cannot be read leaves word in the table; the others go on."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._shared = shared.Shared()
        self._examples = Metrics.counter("curate", "examples")
        self._failures = Metrics.counter("curate", "failures")
        self._bad_shards = Metrics.counter("curate", "unreadable_shards")
        self._stages = {stage: Metrics.distribution("curate", f"{stage}_ms") for stage in STAGES}

    def setup(self) -> None:
        self._threads = max(1, decode_threads() // self._job.processes)
        torch.set_num_threads(self._threads)
        self._device = best_device()
        self._model = self._shared.acquire(self._load)
        self._captions = CaptionEncoder(self._model) if self._job.dataset.task == "image-text" else None
        self._judged = self._failed = 0

    def _load(self) -> Model:
        model = load_model(self._job.reference, trained=True)
        if model.fingerprint() != self._job.fingerprint:
            raise ModelError(f"'{self._job.reference.name}' changed while it was scoring; start again")
        return model.to(self._device)

    def process(self, shard: Shard) -> None:
        job = self._job
        if exists(join_url(job.folder, shard.name + ENDING)):  # a retried bundle
            return
        try:
            result = score_shard(
                job.dataset,
                shard,
                self._model,
                device=self._device,
                precision=job.precision,
                batch_size=job.batch_size,
                embeddings=job.embeddings,
                decode_threads=self._threads,
                forward_flops=job.forward_flops,
                captions=self._captions,
            )
        except ShardError as e:
            self._bad_shards.inc()
            note_error(job.folder, shard, str(e))
            return
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
            hint = f"; one of them: shard {first.shard}, key '{first.key}': {first.reason}" if first else ""
            raise FailuresError(too_many_message(self._failed, self._judged, job.max_failures, job.folder) + hint)


def score_reference(options: ScoreOptions, report: Report = print) -> ScoreSummary:
    """Score what is missing of a table, so that the same call again goes on where the last one ended.

    Raises CurateError: before launch for whatever can be known then (shards, model, folder, first examples), at the
    end for shards that could not be read and for more failures than allowed. Committed shards stay.
    """
    started = time.perf_counter()
    shards = list_shards(options.dataset)
    model = load_model(options.reference, trained=True)
    fingerprint = model.fingerprint()
    flops = forward_flops(model)
    folder = table_folder(options.out, options.dataset, options.reference.name, fingerprint)
    report(
        f"{len(shards):,} shards of '{options.dataset.name}', reference '{options.reference.name}' {fingerprint[:8]}"
    )
    make_folder(folder)
    with writing(folder):
        done = _check_existing(folder, options, shards)
        todo = [shard for shard in shards if shard.name not in done]
        report(f"{folder}: {len(done):,} shards done, {len(todo):,} to do")
        precision = options.precision or best_precision(best_device())
        manifest = _manifest(options, shards, model, fingerprint, flops, precision)
        if todo:
            _check_first_examples(options.dataset, todo)
            write_manifest(folder, {**manifest, "counts": None})
            stage_seconds = _run(options, folder, todo, manifest, fingerprint, precision, report)
        else:
            stage_seconds = {}
        totals = finish(folder, manifest, shards, options.max_failures)
        return ScoreSummary(
            folder=folder,
            **totals,
            scored_now=len(todo),
            seconds=time.perf_counter() - started,
            stage_seconds=stage_seconds,
        )


def _run(
    options: ScoreOptions,
    folder: str,
    todo: Sequence[Shard],
    manifest: dict[str, Any],
    fingerprint: str,
    precision: Precision,
    report: Report,
) -> dict[str, float]:
    runner, pipeline_options = runner_of(options.runner_options, len(todo))
    job = _Job(
        dataset=options.dataset,
        reference=options.reference,
        fingerprint=fingerprint,
        folder=filesystem(folder)[1] if is_local(folder) else folder,  # absolute: a worker may stand elsewhere
        embeddings=options.embeddings,
        batch_size=options.batch_size,
        precision=precision,
        max_failures=options.max_failures,
        processes=pipeline_options.view_as(DirectOptions).direct_num_workers or 1,
        forward_flops=manifest["flops"]["forward_per_example"],
        meta={
            "reference_fingerprint": fingerprint,
            "dataset_fingerprint": options.dataset.fingerprint,
            "scale": manifest["scale"],
            "bias": manifest["bias"],
        },
    )
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(folder, todo, report, stop), daemon=True)
    watcher.start()
    result: Any = None
    own_threads = torch.get_num_threads()  # a runner inside this process has its workers change them
    try:
        pipeline = beam.Pipeline(runner=runner, options=pipeline_options)
        pipeline | "Shards" >> beam.Create(todo) | "Score" >> beam.ParDo(ScoreShard(job))
        result = pipeline.run()
        result.wait_until_finish()
        return _stage_seconds(result, report)
    except CurateError:
        raise
    except Exception as e:
        raise _from_worker(e) from e
    finally:
        torch.set_num_threads(own_threads)
        stop.set()
        watcher.join()
        release(result)


def _from_worker(error: Exception) -> Exception:
    """The CurateError that a worker raised, out of the traceback text that Beam passes on; else the error itself."""
    found = re.findall(r"curate\.errors\.(\w+): (.+)", str(error).replace("\\n", "\n"))
    kind = getattr(errors, found[-1][0], None) if found else None
    if kind is None or not issubclass(kind, CurateError):
        return error
    return kind(re.sub(r" \[while running .*", "", found[-1][1]).strip().strip("\"'"))  # type: ignore[no-any-return]


def _stage_seconds(result: Any, report: Report) -> dict[str, float]:
    """Seconds by stage over all workers, from Beam's metrics; empty where the runner keeps none."""
    try:
        found = result.metrics().query()
    except Exception as e:  # runners without metrics raise kinds of their own
        report(f"this Beam runner gives no metrics ({type(e).__name__}); counts below come from the table itself")
        return {}
    return {
        m.key.metric.name.removesuffix("_ms"): m.committed.sum / 1000
        for m in found["distributions"]
        if m.key.metric.namespace == "curate"
    }


def _check_existing(folder: str, options: ScoreOptions, shards: Sequence[Shard]) -> set[str]:
    """The shards that are done, after making sure that they are of this very data set."""
    manifest = read_manifest(folder)
    done = finished_shards(folder)
    if manifest is None:
        if done:
            raise TableError(f"{folder}: score files without a _manifest.json; choose another --out")
        return done
    if manifest["dataset_fingerprint"] != options.dataset.fingerprint:
        raise TableError(
            f"{folder}: was made of data set {manifest['dataset_fingerprint']}, '{options.dataset.name}' is now "
            f"{options.dataset.fingerprint} (other fields or classes); choose another name or --out"
        )
    if manifest["embeddings"] != options.embeddings:
        has, asked = ("has", "without") if manifest["embeddings"] else ("has no", "with")
        raise TableError(f"{folder}: {has} embeddings and was asked for {asked}; choose another --out")
    if manifest["shards_digest"] != shards_digest(shards):
        sizes = {shard.name: shard.size for shard in shards}
        for name, counts in all_counts(folder, keep=True).items():
            if name in sizes and counts.shard_size != sizes[name]:
                raise TableError(
                    f"{folder}: shard '{name}' was scored at size {counts.shard_size} and is now {sizes[name]}; "
                    f"delete {name}{ENDING} there to score it again"
                )
    return done


def _check_first_examples(dataset: DatasetSpec, todo: Sequence[Shard]) -> None:
    """Find out now, not on a worker, that nothing can be read at all: a column is missing, say.

    One bad shard is left to its worker, which notes it and lets the others go on.
    """
    for shard in {todo[0].name: todo[0], todo[-1].name: todo[-1]}.values():
        try:
            if list(islice(read_shard(dataset, shard), 1)) or dataset.format != "webdataset":
                return
            error = ShardError(f"{shard.url}: no example in it; expected members such as KEY.{dataset.image[0]}")
        except ShardError as e:
            error = e
    raise error


def _manifest(
    options: ScoreOptions,
    shards: Sequence[Shard],
    model: Model,
    fingerprint: str,
    flops: Flops,
    precision: Precision,
) -> dict[str, Any]:
    scale = getattr(model.module, "logit_scale", None)
    bias = getattr(model.module, "logit_bias", None)
    return {
        "dataset": options.dataset.name,
        "dataset_fingerprint": options.dataset.fingerprint,
        "shards_digest": shards_digest(shards),
        "task": options.dataset.task,
        "loss": LOSS_NAMES[options.dataset.task],
        "precision": precision,
        "embeddings": options.embeddings,
        "scale": float(scale.detach().exp()) if scale is not None else None,
        "bias": float(bias.detach()) if bias is not None else None,
        "reference": {
            "name": options.reference.name,
            "fingerprint": fingerprint,
            "model": options.reference.to_dict(),
            "preprocessing": model.preprocessing.to_dict(),
        },
        "flops": {
            "forward_per_example": flops.per_example,
            "uncounted_operators": list(flops.uncounted),
            "reference_train": recorded_train_flops(options.reference.name),
        },
    }
