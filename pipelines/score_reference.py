"""`curate score-reference`: one Beam pass over a data set, writing the reference's losses as a score table."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import apache_beam as beam
import torch
from apache_beam.options.pipeline_options import DirectOptions

from .. import errors
from ..datasets.landed import landed_shards
from ..datasets.notices import shared_by_processes
from ..datasets.readers import read_shard
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import DatasetSpec
from ..datasets.storage import filesystem, is_local
from ..datasets.writing import make_folder
from ..errors import CurateError, ShardError, SpecError, StorageError, TableError, WriteError, without_secrets
from ..scoring.flops import Flops, forward_flops
from ..scoring.forward import best_device, best_precision, float32_products
from ..scoring.loading import load_model
from ..scoring.models import Model
from ..scoring.settings import Precision
from ..scoring.tables.counts import all_counts
from ..scoring.tables.read import finished_shards, read_manifest
from ..scoring.tables.run_costs import recorded_train_flops
from ..scoring.tables.schema import shards_digest, table_folder
from ..scoring.tables.source import check_source, source_of
from ..scoring.tables.write import write_manifest, writing
from ..units import Report, counted
from .committed import watch, watch_landing
from .finish import check_size, finish
from .follow import LandingShards, children_ignore_interrupts, until_stopped
from .job import ScoreShard, ScoringJob
from .options import ScoreOptions
from .runner import release, runner_of

COUNTS_COME_FROM_THE_TABLE = "counts below come from the table itself"


@dataclass(frozen=True)
class ScoreSummary:
    """The result of one call of `score_reference`: the table's folder and totals, and this call's own work.

    `waiting` are shards that had landed when a follower was stopped, and that it had not scored.
    """

    folder: str
    shards: int
    examples: int
    failures: int
    waiting: int
    scored_now: int
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        waiting = f", {self.waiting:,} more landed" if self.waiting else ""
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.stage_seconds.items())
        return (
            f"{counted(self.examples, 'example')} scored, {self.failures:,} failed, {counted(self.shards, 'shard')} "
            f"({self.scored_now:,} in this call{waiting}) in {self.seconds:.1f} s"
            + (f"; over all workers: {stages}" if stages else "")
        )


def score_reference(options: ScoreOptions, report: Report = print) -> ScoreSummary:
    """Score what is missing of a table. The same call again resumes where the last one ended.

    Raises CurateError: before launch for all that can be checked then (shards, model, folder, first examples); at the
    end for shards that could not be read and for more failures than allowed. Committed shards are kept.
    """
    started = time.perf_counter()
    following = options.follow
    shards = landed_shards(options.dataset) if following else list_shards(options.dataset)
    model = load_model(options.model, trained=True)
    fingerprint = model.fingerprint()
    flops = forward_flops(model)
    folder = table_folder(options.out, options.dataset, options.model.name, fingerprint)
    name = without_secrets(options.model.name)
    report(f"{counted(len(shards), 'shard')} of '{options.dataset.name}', reference '{name}' {fingerprint[:8]}")
    with _or_another_out():
        make_folder(folder)
    with _or_another_out(), writing(folder):
        before = read_manifest(folder)
        done = _check_existing(folder, before, options, shards, fingerprint, report)
        todo = [shard for shard in shards if shard.name not in done]
        report(f"{without_secrets(folder)}: {counted(len(done), 'shard')} done, {len(todo):,} to do")
        precision = _precision(folder, before if done else None, options)
        manifest = _manifest(options, shards, model, fingerprint, flops, precision)
        # A table that an older version began is finished without the images' places.
        manifest["places"] = bool((before or {}).get("places")) if done else True
        source = (before or {}).get("source") if done else None
        manifest["source"] = source_of(folder, options.dataset, shards, source)
        stage_seconds: dict[str, float] = {}
        if todo or following:
            if not following:
                _check_first_examples(options.dataset, todo)
            write_manifest(folder, {**manifest, "counts": None})
            with float32_products(best_device(), precision):  # workers in this process leave their setting behind
                stage_seconds = _run(options, folder, todo, done, manifest, fingerprint, precision, report)
        if following:
            shards = landed_shards(options.dataset)
            manifest["shards_digest"] = shards_digest(shards)
            manifest["source"] = source_of(folder, options.dataset, shards, manifest["source"])
        totals = finish(folder, manifest, shards, options.max_failures, stopped=following)
        return ScoreSummary(
            folder=folder,
            **totals,
            scored_now=totals["shards"] - len(done) if following else len(todo),
            seconds=time.perf_counter() - started,
            stage_seconds=stage_seconds,
        )


@contextmanager
def _or_another_out() -> Iterator[None]:
    """Adds to the error of a folder that cannot be written that another --out may help."""
    try:
        yield
    except WriteError as e:
        raise TableError(f"{e}, or choose another --out") from e


def _run(
    options: ScoreOptions,
    folder: str,
    todo: Sequence[Shard],
    done: set[str],
    manifest: dict[str, Any],
    fingerprint: str,
    precision: Precision,
    report: Report,
) -> dict[str, float]:
    runner, pipeline_options = runner_of(options.runner_options, len(todo), follow=options.follow)
    job = ScoringJob(
        dataset=options.dataset,
        reference=options.model,
        fingerprint=fingerprint,
        folder=filesystem(folder)[1] if is_local(folder) else folder,  # absolute: a worker may run in another folder
        vectors=options.embeddings or options.logits,
        places=manifest["places"],
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
    if not options.follow:
        source: beam.PTransform = beam.Create(todo)
        watcher = threading.Thread(target=watch, args=(folder, todo, report, stop), daemon=True)
    else:
        source = LandingShards(options.dataset, job.folder, options.every)
        watcher = threading.Thread(target=watch_landing, args=(folder, done, report, stop), daemon=True)
    watcher.start()
    result: Any = None
    own_threads = torch.get_num_threads()  # workers of a runner inside this process change it
    try:
        pipeline = beam.Pipeline(runner=runner, options=pipeline_options)
        pipeline | "Shards" >> source | "Score" >> beam.ParDo(ScoreShard(job))
        if not options.follow:
            with shared_by_processes():
                result = pipeline.run()
                result.wait_until_finish()
        else:
            with children_ignore_interrupts():
                result = pipeline.run()
            until_stopped(result, report)
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
    """The CurateError of a worker, parsed from the traceback in Beam's error; else the error itself."""
    if "prism binary" in str(error):
        return SpecError(
            f"Beam's engine Prism cannot be fetched ({error}); build it with tests/engines/setup_prism.sh, then name it: "
            "-- --prism_location=.cache/engines/prism-VERSION; or use --runner=FlinkRunner"
        )
    found = re.findall(r"curate\.errors\.(\w+): (.+)", str(error).replace("\\n", "\n"))
    kind = getattr(errors, found[-1][0], None) if found else None
    if kind is None or not issubclass(kind, CurateError):
        return error
    return kind(re.sub(r" \[while running .*", "", found[-1][1]).strip().strip("\"'"))  # type: ignore[no-any-return]


def _stage_seconds(result: Any, report: Report) -> dict[str, float]:
    """Seconds by stage over all workers, from Beam's metrics; empty where the runner has none."""
    try:
        found = result.metrics().query()["distributions"]
    except Exception as e:  # runners without metrics raise exceptions of their own
        report(f"this Beam runner gives no metrics ({type(e).__name__}); {COUNTS_COME_FROM_THE_TABLE}")
        return {}
    seconds = {
        m.key.metric.name.removesuffix("_ms"): m.committed.sum / 1000
        for m in found
        if m.key.metric.namespace == "curate" and m.committed is not None
    }
    if not any(seconds.values()):  # a Flink cluster's metrics may be empty or zeros
        report(f"this Beam runner gives no metrics; {COUNTS_COME_FROM_THE_TABLE}")
        return {}
    return seconds


def _precision(folder: str, manifest: dict[str, Any] | None, options: ScoreOptions) -> Precision:
    """As the table began: a loss in bf16 is not the loss in fp32. Raises TableError where the user asks for another."""
    begun: Precision | None = manifest["precision"] if manifest is not None else None
    if begun and options.precision and begun != options.precision:
        raise TableError(
            f"{folder}: was scored in {begun} and is asked for in {options.precision}; leave --precision out, or choose "
            "another --out"
        )
    return begun or options.precision or best_precision(best_device())


def _check_existing(
    folder: str,
    manifest: dict[str, Any] | None,
    options: ScoreOptions,
    shards: Sequence[Shard],
    fingerprint: str,
    report: Report,
) -> set[str]:
    """The shards that are done. Raises TableError where they are not of this data set and reference."""
    done = finished_shards(folder)
    if manifest is None:
        if done:
            raise TableError(f"{folder}: score files without a _manifest.json; restore it, or choose another --out")
        return done
    if manifest["reference"]["fingerprint"] != fingerprint:
        raise TableError(
            f"{folder}: is of reference {manifest['reference']['fingerprint'][:16]}, '{options.model.name}' is "
            f"{fingerprint[:16]}; choose another --out"
        )
    if manifest["dataset_fingerprint"] != options.dataset.fingerprint:
        raise TableError(
            f"{folder}: was made of data set {manifest['dataset_fingerprint']}, '{options.dataset.name}' is now "
            f"{options.dataset.fingerprint} (other fields or classes); choose another name or --out"
        )
    for vectors in ("embeddings", "logits"):
        stored, asked_for = manifest.get(vectors, False), getattr(options, vectors)
        if stored != asked_for:
            has, asked = ("has", "without") if stored else ("has no", "with")
            raise TableError(f"{folder}: {has} {vectors} and was asked for {asked}; choose another --out")
    compared = check_source(folder, manifest, options.dataset, shards, done)
    if compared:
        report(
            f"{without_secrets(folder)}: its shards were moved; {compared:,} of their targets are those that were scored"
        )
    if manifest["shards_digest"] != shards_digest(shards):
        by_name = {shard.name: shard for shard in shards}
        for name, counts in all_counts(folder, keep=True).items():
            if name in by_name:
                check_size(folder, by_name[name], counts.shard_size)
    return done


def _check_first_examples(dataset: DatasetSpec, todo: Sequence[Shard]) -> None:
    """Find out before launch if nothing can be read at all, for example because a column is missing.

    A single bad shard is left to its worker, which records it; the others are scored.
    """
    error: CurateError
    for shard in {todo[0].name: todo[0], todo[-1].name: todo[-1]}.values():
        try:
            if list(islice(read_shard(dataset, shard), 1)) or dataset.format != "webdataset":
                return
            error = ShardError(f"{shard.url}: no example in it; expected members such as KEY.{dataset.image[0]}")
        except (ShardError, StorageError) as e:
            error = e
    raise error


def _public(value: Any) -> Any:
    """The same without what URLs in it may hold of secrets: a table is made to be shared."""
    if isinstance(value, dict):
        return {name: _public(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_public(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


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
        "loss": model.task.loss_name,
        "precision": precision,
        "embeddings": options.embeddings,
        **({"logits": True} if options.logits else {}),  # as older tables, which know no logits
        "scale": float(scale.detach().exp()) if scale is not None else None,
        "bias": float(bias.detach()) if bias is not None else None,
        "reference": {
            "name": without_secrets(options.model.name),
            "fingerprint": fingerprint,
            "model": _public(options.model.to_dict()),
            "preprocessing": model.preprocessing.to_dict(),
        },
        "flops": {
            "forward_per_example": flops.per_example,
            "uncounted_operators": list(flops.uncounted),
            "reference_train": recorded_train_flops(options.model.name),
        },
    }
