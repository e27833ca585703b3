"""`curate train`: from options to a run folder. Everything is checked before the first step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..datasets.shards import list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset, load_config
from ..errors import CurateError
from ..scoring.coarse import coarsened
from ..scoring.flops import forward_flops, step_cost
from ..scoring.forward import best_device, best_precision
from ..scoring.gradients import batch_norms
from ..scoring.loading import find_model, load_model
from ..scoring.models import Model
from ..scoring.selector import Selector
from ..scoring.settings import Precision
from ..scoring.tables.lookup import ScoreTable
from ..units import Report, format_flops
from . import checkpoint, folder, frozen, startup
from .evaluate import check_test_split
from .finish import evaluate_again, finish, told
from .loop import TrainingJob, train_loop
from .memory import Needs, check_memory
from .options import RunOptions
from .pace import Pace
from .records import RunRecords, write_json
from .reference import note_geometry, note_views, open_reference
from .scorer import ONLINE, REFERENCE, RunScorer
from .signals import Stop, handled_by
from .sub import SubBatches, refuse_misfits
from .superbatch import SuperBatches
from .timing import Stages
from .trainee import Trainee


def train(
    options: RunOptions, *, config: Config | None = None, resume: bool = False, report: Report = print
) -> dict[str, Any]:
    """Train one learner under one policy and return its summary (also `summary.json` of the run folder).

    With `resume`, a run that was interrupted continues from its last checkpoint, and a finished one is returned as it
    is. Raises CurateError before step 1 for whatever can be known by then.
    """
    config = config if config is not None else load_config()
    run = Path(options.records.out, options.records.name or folder.default_name(options))
    dataset = find_dataset(options.dataset, config)
    began = (run / "config.json").exists()
    finished = folder.open_folder(run, options, resume, report)
    if finished is not None:
        if "not_evaluated" in finished and options.records.evaluate and dataset.test:
            return evaluate_again(options, config, dataset, run, finished, report)
        report(f"{run}: already finished, nothing to do")
        return finished
    stop = Stop()
    try:
        with handled_by(stop):
            records = RunRecords(run, report, options.records.selections_every)
            return _train(options, config, dataset, run, records, stop)
    except BaseException as e:
        refused = isinstance(e, CurateError) and not (run / "metrics.jsonl").exists() and not checkpoint.exists(run)
        if not began and (refused or not (run / "config.json").exists()):
            # Refused before anything was trained: leave no folder that the next attempt would trip over.
            shutil.rmtree(run, ignore_errors=True)
        else:
            with suppress(CurateError, OSError):  # a full disk may be what stopped it
                RunRecords(run, report).log(f"{told(e)}; {_next(run)}")
        raise
    finally:
        folder.LOCKS.pop(str(run)).close()


def _next(run: Path) -> str:
    if (run / "summary.json").exists():
        return "--resume evaluates it"
    return "--resume continues from the last checkpoint" if checkpoint.exists(run) else "--resume begins it anew"


@dataclass(frozen=True)
class _Models:
    """All models of a run. `scorer` scores super-batches: the online model or the learner, as coarse as it scores."""

    learner: Trainee
    online: Trainee | None
    scorer: Model | None
    forward: Any
    table: ScoreTable | None
    reference: Model | None
    rescored: int

    @property
    def trainees(self) -> dict[str, Trainee]:
        return {"learner": self.learner} | ({"online": self.online} if self.online else {})


def _train(
    options: RunOptions, config: Config, dataset: DatasetSpec, run: Path, records: RunRecords, stop: Stop
) -> dict[str, Any]:
    started = time.perf_counter()
    device = best_device()
    began = folder.began_with(run)
    precision = options.optimization.precision or began.get("precision") or best_precision(device)
    shards = list_shards(dataset)
    evaluates = options.records.evaluate and bool(dataset.test)
    test_shards = check_test_split(dataset, options.data.max_failures) if evaluates else None
    models = _models(options, config, dataset, shards, device, precision, records)
    learner, table = models.learner.model, models.table
    trained = {"learner": learner} | ({"online": models.online.model} if models.online else {})
    weights = {name: frozen.weights_of(model) for name, model in trained.items()}

    joint_loss = startup.joint_loss_of(options, models.scorer or learner, table)
    cost, uncounted = step_cost(
        learner,
        models.online.model if models.online else None,
        models.scorer,
        sub_batch=options.optimization.batch_size,
        super_batch=options.super_batch_size,
        label_smoothing=options.optimization.label_smoothing,
        accumulate=options.optimization.accumulate,
        choosing=startup.joint_flops(options, models.scorer, joint_loss, table),
    )
    ledger = startup.reference_ledger(table)
    reference_cost = forward_flops(models.reference).per_example if models.reference else 0.0
    made_in_run = models.reference if options.selection.on_missing == "score" else None
    missing = startup.missing_share(table, shards) * options.super_batch_size * reference_cost if made_in_run else 0.0
    charged = startup.charged_to(options, ledger, table)
    steps = startup.steps_of(options, cost, charged, missing)
    if models.rescored:
        ledger.add_outside("verification", reference_cost * models.rescored)

    scale = options.selection.score_scale
    if scale is None:
        scale = 1.0 if options.selection.joint else learner.task.score_scale
    augment = options.optimization.augment or learner.task.augment
    warmup = round(options.optimization.warmup * steps)
    settings = {
        **{f"{name} lr": trainee.lr for name, trainee in models.trainees.items()},
        **{"augment": augment, "warmup": warmup, "score scale": scale, "joint loss": joint_loss},
    }
    frozen_now = {
        "train": frozen.shards_of(shards),
        "test": frozen.shards_of(test_shards) if test_shards is not None else None,
        "weights": weights,
        "score_table": frozen.table_of(table, shards) if table is not None else None,
        "steps": steps,
        "settings": settings,
    }
    manifest = startup.manifest_of(dataset, shards, trained, table, device, precision, cost, uncounted, frozen_now)
    if began:
        folder.refuse_other_beginning(run, manifest, records.log)

    seen = {**trained, ONLINE: models.scorer, REFERENCE: made_in_run}
    batches = SuperBatches(
        dataset,
        options.super_batch_size,
        views={name: model.geometry for name, model in seen.items() if model},
        tokenize={name: model.tokenizer for name, model in seen.items() if model and model.tokenizer},
        scores=table,
        embeddings=options.selection.joint,
        on_missing=options.selection.on_missing,
        seed=options.seed,
        lanes=folder.settled_lanes(run, options),
        max_failures=options.data.max_failures,
        max_bad_shards=options.data.max_bad_shards,
        host_bytes=options.data.host_bytes,
        cache_bytes=options.data.cache_bytes,
        shards=shards,
        verify=False,  # open_reference did
    )
    timing = Stages()
    score_precision: Precision = table.manifest["precision"] if table is not None else precision
    scorer = RunScorer(
        policy=options.selection.chosen_policy,
        model=models.scorer,
        forward=models.forward,
        reference=made_in_run,
        reference_cost=reference_cost,
        ledger=ledger,
        precision=score_precision,
        micro_batch=options.optimization.micro_batch,
        reference_scale=(table.manifest.get("scale") if table else None) or 1.0,
        reference_bias=(table.manifest.get("bias") if table else None) or 0.0,
        budget=None if options.budget.budget_flops is None else options.budget.budget_flops - charged,
        step_flops=cost.total,
    )
    selector = Selector(
        options.selection.policy,
        options.optimization.batch_size,
        sampler=options.selection.sampler,
        temperature=options.selection.temperature,
        scale=scale,
        chunks=options.selection.chunks,
        joint_loss=joint_loss,
        seed=startup.stream_seed(options.seed, "select"),
    )
    checked = [model for model in (*trained.values(), made_in_run) if model]
    job = TrainingJob(
        run=run,
        subs=SubBatches(
            batches,
            selector,
            scorer=scorer,
            device=device,
            timing=_until_stopped(timing, stop),
            check=partial(refuse_misfits, checked),
        ),
        learner=models.learner,
        online=models.online,
        steps=steps,
        warmup=warmup,
        augment=augment,
        augmenting=torch.Generator().manual_seed(startup.stream_seed(options.seed, "augment")),
        cost=cost,
        ledger=ledger,
        records=records,
        pace=Pace(
            steps,
            options.optimization.batch_size,
            log_every=options.records.log_every,
            checkpoint_every=options.records.checkpoint_every,
            report=records,
        ),
        timing=timing,
        stop=stop,
    )
    check_memory(
        Needs(
            learner=models.learner,
            online=models.online,
            scoring=[model for model in (models.scorer, made_in_run) if model],
            views=batches.views.values(),
            ahead=job.subs.views_ahead,
            sub_batch=selector.b,
            super_batch=batches.size,
            micro_batch=options.optimization.micro_batch,
            accumulate=options.optimization.accumulate,
            grad_checkpointing=options.optimization.grad_checkpointing,
            score_precision=score_precision,
            device=device,
            joint=options.selection.joint,
        ),
        records.log,
    )
    startup.check_disk(run, list(trained.values()), options, steps)
    if not (run / "config.json").exists():  # a resumed run keeps what it began with
        write_json(run / "manifest.json", manifest)
        write_json(run / "config.json", options.but(lanes=batches.lanes).to_dict())
    records.log(
        f"{run}: {selector.policy}, {steps:,} steps of {selector.b} (super-batch {batches.size}, {batches.lanes} lanes), "
        f"{format_flops(cost.total)} a step, {format_flops(cost.total * steps)} in all, on {device} in {precision}"
    )
    if options.optimization.accumulate > 1:
        parts = f"normalise over each of {options.optimization.accumulate} parts of a batch, not over all of it"
        for name, model in trained.items():
            if batch_norms(model.module):
                records.log(f"the {name}'s BatchNorm layers {parts}: gradients differ from those of the whole batch")
    if uncounted:
        records.log(f"operators that count as zero FLOPs: {', '.join(uncounted)}")
    torch.manual_seed(options.seed)
    done = train_loop(job)
    return finish(options, dataset, job, done, table, device, precision, started)


def _until_stopped(timing: Stages, stop: Stop) -> Callable[[str], AbstractContextManager[None]]:
    """`timing`, and while the loop waits for data a signal does not wait for the end of a step: there may be none."""

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        with timing(stage):
            if stage != "data":
                yield
                return
            stop.release()
            try:
                yield
            finally:
                stop.hold()

    return timed


def _models(
    options: RunOptions,
    config: Config,
    dataset: DatasetSpec,
    shards: Any,
    device: torch.device,
    precision: Precision,
    records: RunRecords,
) -> _Models:
    policy = options.selection.chosen_policy

    def build(name: str, seed: int) -> Model:
        spec = find_model(name, task=dataset.task, num_classes=dataset.num_classes, config=config)
        return load_model(spec, seed=seed)

    learner = build(options.learner, options.seed)
    online = None
    if options.selection.online and policy.online in ("model", "either"):
        online = build(options.selection.online, startup.stream_seed(options.seed, "online"))
    opened = open_reference(options, config, dataset, shards, device, records)
    startup.check_policy(options, learner, opened.table)
    compiled = options.optimization.compile
    settings: dict[str, Any] = {
        **options.optimization.stepping,
        "compiled": compiled if compiled is not None else device.type == "cuda",
        "device": device,
        "precision": precision,
    }
    lr = options.optimization.lr if options.optimization.lr is not None else learner.task.lr
    online_lr = options.optimization.online_lr if options.optimization.online_lr is not None else lr
    learner_trainee = Trainee(learner, lr=lr, **options.optimization.of_the_learner, **settings)
    online_trainee = Trainee(online, lr=online_lr, **settings) if online else None

    asked = None if policy.online == "none" else online_trainee or learner_trainee
    scorer, forward = (asked.model, asked.forward) if asked else (None, None)
    coarse = startup.coarse_of(options.selection, opened.table)
    if asked and coarse:
        scorer = coarsened(asked.model, coarse)
        forward = torch.compile(scorer.module) if asked.compiled else scorer.module
    note_geometry(opened.table, scorer, records.log)
    note_views(learner, online, records.log)
    return _Models(learner_trainee, online_trainee, scorer, forward, opened.table, opened.model, opened.rescored)
