"""After the last step: final weights, quality on the test split, the summary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..datasets.spec import Config, DatasetSpec
from ..errors import CurateError, StoppedError
from ..scoring.forward import best_device, best_precision, float32_products
from ..scoring.loading import find_model, load_model, save_tensors
from ..scoring.models import EvaluationFlops, Model
from ..scoring.settings import Precision
from ..scoring.tables.lookup import ScoreTable
from ..units import Report, format_flops
from . import checkpoint, folder, startup
from .evaluate import evaluate, refuse_few
from .group import Group
from .loop import TrainingJob
from .options import RunOptions
from .positions import counts_of, skipped_of
from .records import write_json
from .refreshed import RefreshedTable
from .timing import EVALUATE, total


def finish(
    options: RunOptions,
    dataset: DatasetSpec,
    job: TrainingJob,
    steps: int,
    table: ScoreTable | None,
    started: float,
) -> dict[str, Any]:
    """Final weights, quality and summary; then the checkpoints go. Without quality there is a summary too: it says why."""
    run, ledger, group = job.run, job.ledger, job.group
    _write_weights(job, steps)
    if table is not None and (options.data.follow or isinstance(table, RefreshedTable)):
        with suppress(CurateError, OSError):  # else it stays what it was when the run began
            ledger.reference_score = startup.reference_ledger(table, grows=options.data.follow).reference_score
    quality: Mapping[str, float] = {}
    error: BaseException | None = None
    with job.timing(EVALUATE):
        if options.records.evaluate and dataset.test:
            try:
                quality = job.keeping.quality()
            except BaseException as e:
                error = e
    best = job.keeping.finish(steps, quality)
    policy, seconds = options.selection.chosen_policy, job.timing.state_dict()
    batches = job.subs.drawn_state()
    summary = {
        "run": run.name,
        "dataset": dataset.name,
        "policy": policy.name,
        "learner": options.learner,
        "online": options.selection.online if job.online else None,
        "reference": table.manifest["reference"]["name"] if table else options.selection.reference_online,
        "reference_table": Path(table.folder).name.removeprefix("reference=") if table else None,
        "seed": options.seed,
        "steps": steps,
        "examples_trained": steps * options.optimization.batch_size,
        "examples_scored": job.subs.examples_scored(job.auto.scored_steps(steps) if job.auto else steps),
        "ledger": ledger.lines(),
        **({"ledger_in_run": ledger.in_run} if ledger.in_run else {}),
        **({"replay": options.selection.replay, "choices": ledger.choices} if options.selection.replay else {}),
        "outside_the_ledger": ledger.outside,
        "regimes": ledger.regimes(),
        "seconds": {"total": total(seconds), **seconds, "wall": time.perf_counter() - started},
        "quality": quality,
        **({} if job.keeping.reference is None else {"reference_quality": job.keeping.reference}),
        **({"best": best} if best else {}),
        **({"autopilot": job.auto.summary()} if job.auto else {}),
        **({"not_evaluated": told(error)} if error else {}),
        "counts": counts_of(batches),
        **({"shards_by_epoch": batches["epochs"]} if "epochs" in batches else {}),
        **({"newer_scores": table.summary()} if isinstance(table, RefreshedTable) else {}),
        "skipped_shards": skipped_of(batches),
    }
    with group.together():
        if group.is_first:
            write_json(run / "summary.json", summary)
            checkpoint.remove_all(run)
            job.records.finished(summary)
    summary = group.share(summary)[0]
    if error is not None:
        if isinstance(error, CurateError):
            lost = type(error)(f"{run}: trained, its weights are kept, but not evaluated: {error}")
            raise group.alike(lost) from error
        raise error
    _say_bad(job, summary["counts"])
    shown = _shown(quality) or f"not evaluated ({'--no-evaluate' if dataset.test else 'no test split'})"
    job.records.log(f"{run}: done, {format_flops(ledger.spent)} spent, {shown}")
    return summary


def _say_bad(job: TrainingJob, counts: Mapping[str, int]) -> None:
    """Log how many examples are bad, and one of them. A collective."""
    bad, usable = counts.get("failures", 0), counts.get("examples", 0)
    one = next((failure for failure in job.group.share(job.subs.batches.last_failure) if failure), None)
    if bad:
        such = f"; one of them: shard '{one.shard}', key '{one.key}', {one.stage}: {one.reason}" if one else ""
        job.records.log(f"{bad:,} of {usable + bad:,} examples are bad and were not used{such}")


def _write_weights(job: TrainingJob, steps: int) -> None:
    """Rank 0 writes. A collective."""
    run = job.run
    trainees = {name: trainee.state(optimizer=False) for name, trainee in job.all_trainees.items()}
    with job.group.together():
        if not job.group.is_first:
            return
        checkpoint.refuse_diverged(run, steps, trainees)
        (run / "checkpoints").mkdir(exist_ok=True)
        for name, trainee in trainees.items():
            save_tensors(trainee.result, run / "checkpoints" / f"{name}.safetensors")
            if trainee.average is not None:
                save_tensors(trainee.weights, run / "checkpoints" / f"{name}-last.safetensors")


def quality_of(
    options: RunOptions,
    learner: Model,
    dataset: DatasetSpec,
    outside: dict[str, float],
    device: torch.device,
    precision: Precision,
    group: Group,
    flops: EvaluationFlops,
) -> dict[str, float]:
    """Quality on the test split; its cost is added to `outside`. Raises FailuresError where too many of its examples are bad."""
    quality = evaluate(learner, dataset, device=device, precision=precision, ranks=group)
    n, failures = int(quality["test_examples"]), int(quality.get("test_failures", 0))
    refuse_few(f"data set '{dataset.name}', test split", n, failures, options.data.max_failures)
    outside["evaluation"] = outside.get("evaluation", 0.0) + flops.of(quality, dataset, group.size)
    return quality


def _shown(quality: Mapping[str, float]) -> str:
    return ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in quality.items())


def evaluate_again(
    options: RunOptions,
    config: Config,
    dataset: DatasetSpec,
    run: Path,
    summary: dict[str, Any],
    report: Report,
    group: Group,
) -> dict[str, Any]:
    """The quality of a trained run whose evaluation failed, added to its summary."""
    device = best_device()
    with group.together():
        precision = folder.began_with(run).get("precision") or best_precision(device)
        spec = find_model(str(run), task=dataset.task, num_classes=dataset.num_classes, config=config)
        learner = load_model(spec).to(device)
    flops = learner.task.evaluation_flops(learner)
    with float32_products(device, precision):
        outside = summary["outside_the_ledger"]
        quality = quality_of(options, learner, dataset, outside, device, precision, group, flops)
    found = {k: v for k, v in summary.items() if k != "not_evaluated"} | {"quality": quality}
    with group.together():
        if group.is_first:
            write_json(run / "summary.json", found)
            report(f"{run}: evaluated, {_shown(quality)}")
    return found


def told(error: BaseException) -> str:
    """What stopped a run, for its log."""
    if isinstance(error, StoppedError):
        return str(error)
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped: {type(error).__name__}: {error}"
