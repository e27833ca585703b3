"""`curate train`: from options to a run folder. Everything is checked before the first step."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset, load_config
from ..errors import BusyError, CurateError, RunError, TableError
from ..ledger import Ledger, StepCost
from ..scoring.flops import forward_flops
from ..scoring.forward import best_device, best_precision
from ..scoring.loading import find_model, load_model, save_weights
from ..scoring.models import Model
from ..scoring.settings import Precision
from ..scoring.tables.lookup import ScoreTable
from ..units import Report, format_flops
from . import checkpoint
from .budget import steps_within
from .evaluate import evaluate
from .loop import Job, train_loop
from .options import RunOptions
from .records import RunRecords, read_document, write_json
from .reference import open_reference
from .selecting import joint_flops, make_scorer
from .superbatch import SuperBatches
from .trainee import Trainee

# What a run that was killed before it wrote its config.json may have left.
BEFORE_CONFIG = frozenset({".lock", "checkpoints", "selections", "log.txt"})
# Adam's two moments, in weights; and a selection's row in compressed Parquet (measured: 20 to 30 bytes).
OPTIMIZER_STATE, SELECTION_BYTES = 2, 30
# Options that may differ when a run is resumed: they change what is written or how fast, never the weights.
FREE_TO_CHANGE = frozenset({"log_every", "checkpoint_every", "cache_bytes", "evaluate", "out", "name"})


def train(
    options: RunOptions, *, config: Config | None = None, resume: bool = False, report: Report = print
) -> dict[str, Any]:
    """Train one learner under one policy and return its summary (also `summary.json` of the run folder).

    With `resume`, a run that was interrupted goes on from its last checkpoint, and a finished one is returned as it
    is. Raises CurateError before step 1 for whatever can be known by then.
    """
    config = config if config is not None else load_config()
    run = Path(options.records.out, options.records.name or default_name(options))
    dataset = find_dataset(options.dataset, config)
    finished = _open_folder(run, options, resume)
    if finished is not None:
        report(f"{run}: already finished, nothing to do")
        return finished
    records = RunRecords(run, report)
    try:
        return _train(options, config, dataset, run, records)
    except BaseException as e:
        refused = isinstance(e, CurateError) and not (run / "metrics.jsonl").exists() and not checkpoint.exists(run)
        if refused or not (run / "config.json").exists():
            # Refused before anything was trained: leave no folder that the next attempt would trip over.
            shutil.rmtree(run, ignore_errors=True)
        else:
            records.log(f"stopped: {type(e).__name__}: {e}; --resume goes on from the last checkpoint")
        raise
    finally:
        _LOCKS.pop(str(run)).close()


def default_name(options: RunOptions) -> str:
    """`dataset-policy-learner-seed0`, of characters that any file system takes."""
    parts = [
        Path(options.dataset).name,
        options.selection.chosen_policy.name,
        Path(options.learner).name,
        f"seed{options.seed}",
    ]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-") for part in parts)


def _train(options: RunOptions, config: Config, dataset: DatasetSpec, run: Path, records: RunRecords) -> dict[str, Any]:
    started = time.perf_counter()
    device = best_device()
    precision = options.optimization.precision or best_precision(device)
    shards = list_shards(dataset)

    policy = options.selection.chosen_policy

    def build(name: str, seed: int) -> Model:
        return load_model(
            find_model(name, task=dataset.task, num_classes=dataset.num_classes, config=config), seed=seed
        )

    learner = build(options.learner, options.seed)
    online = (
        build(options.selection.online, options.seed + 1)
        if options.selection.online and policy.online in ("model", "either")
        else None
    )
    opened = open_reference(options, config, dataset, shards, device, records.log)
    table, reference = opened.table, opened.model
    reference_cost = forward_flops(reference).per_example if reference else 0.0

    ledger = _reference_ledger(table)
    lr = options.optimization.lr if options.optimization.lr is not None else learner.task.lr
    online_lr = options.optimization.online_lr if options.optimization.online_lr is not None else lr
    learner_trainee = Trainee(learner, options, lr, device)
    online_trainee = Trainee(online, options, online_lr, device) if online else None
    score_precision: Precision = table.manifest["precision"] if table is not None else precision
    made_in_run = reference if options.selection.on_missing == "score" else None
    scorer = make_scorer(options, learner_trainee, online_trainee, made_in_run, table, score_precision)
    cost, uncounted = step_cost(
        options, learner_trainee, online_trainee, scorer.model, joint_flops(options, scorer, table)
    )
    charged = 0.0
    if options.budget.charge_reference and table is not None:
        if ledger.reference_train is None:
            raise TableError(
                f"{table.folder}: does not know what training its reference cost; leave --charge-reference out"
            )
        charged = ledger.reference_score + ledger.reference_train
    steps = _steps(options, cost, charged)

    geometries = [m.geometry for m in (learner, online, scorer.model, made_in_run) if m]
    data = SuperBatches(
        dataset,
        shards,
        options.super_batch_size,
        geometries,
        scores=table,
        embedding_width=table.embedding_width if options.selection.joint and table else 0,
        on_missing=options.selection.on_missing,
        seed=options.seed,
        max_failures=options.data.max_failures,
        cache_bytes=options.data.cache_bytes,
        shuffle_bytes=options.data.host_bytes,
    )
    models = {"learner": learner, **({"online": online} if online else {})}
    _check_disk(run, models, options, steps)
    write_json(run / "config.json", options.to_dict())
    write_json(run / "manifest.json", _manifest(dataset, shards, models, table, device, precision, cost, uncounted))
    records.log(
        f"{run}: {policy.name}, {steps:,} steps of {options.optimization.batch_size} (super-batch {options.super_batch_size}), "
        f"{format_flops(cost.total)} a step, {format_flops(cost.total * steps)} in all, on {device} in {precision}"
    )
    if uncounted:
        records.log(f"operators that count as zero FLOPs: {', '.join(uncounted)}")
    job = Job(
        options=options.but(augment=options.optimization.augment or learner.task.augment),
        run=run,
        data=data,
        learner=learner_trainee,
        online=online_trainee,
        scorer=scorer,
        reference_cost=reference_cost,
        steps=steps,
        cost=cost,
        ledger=ledger,
        records=records,
        device=device,
        precision=precision,
    )
    if opened.rescored:
        ledger.add_outside("verification", reference_cost * opened.rescored)
    finished = train_loop(job)
    ledger = job.ledger

    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    save_weights(learner.module, folder / "learner.safetensors")
    if online:
        save_weights(online.module, folder / "online.safetensors")
    quality: dict[str, float] = {}
    evaluation_started = time.perf_counter()
    if options.records.evaluate and dataset.test:
        quality = evaluate(learner, dataset, device=device, precision=precision)
        ledger.add_outside("evaluation", forward_flops(learner).per_example * quality["test_examples"])
    seconds = {**finished.seconds, "evaluate": time.perf_counter() - evaluation_started}
    summary = {
        "run": run.name,
        "dataset": dataset.name,
        "policy": policy.name,
        "learner": options.learner,
        "online": options.selection.online if online else None,
        "reference": table.manifest["reference"]["name"] if table else None,
        "reference_table": Path(table.folder).name.removeprefix("reference=") if table else None,
        "seed": options.seed,
        "steps": steps,
        "examples_trained": steps * options.optimization.batch_size,
        "examples_scored": finished.counts.pop("scored"),
        "ledger": ledger.lines(),
        "outside_the_ledger": ledger.outside,
        "regimes": ledger.regimes(),
        "seconds": {"total": sum(seconds.values()), **seconds, "wall": time.perf_counter() - started},
        "quality": quality,
        "counts": finished.counts,
    }
    write_json(run / "summary.json", summary)
    checkpoint.remove_all(run)
    shown = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}" for k, v in quality.items())
    records.log(f"{run}: done, {format_flops(ledger.spent)} spent, {shown or 'not evaluated (no test split)'}")
    return summary


def _open_folder(run: Path, options: RunOptions, resume: bool) -> dict[str, Any] | None:
    """Make the run folder, or find it as an earlier call left it. Returns the summary of a finished run."""
    config = run / "config.json"
    if config.exists():
        if not resume:
            raise RunError(f"{run}: this run exists; --resume goes on with it, --name makes another")
        changed = options.changed_since(read_document(config), FREE_TO_CHANGE)
        if changed:
            raise RunError(f"{run}: was started with {changed[0]}; use the same, or another --name")
        if (run / "summary.json").exists():
            return read_document(run / "summary.json")
    elif run.is_dir():
        # A refused run is removed again, so it must not start where somebody else's files are.
        foreign = sorted({path.name for path in run.iterdir()} - BEFORE_CONFIG)
        if foreign:
            raise RunError(f"{run}: holds '{foreign[0]}' and is no run folder; choose another --name or --out")
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        _lock(run)
    except OSError as e:
        raise RunError(f"{run}: cannot be written ({e.strerror or e}); choose another --out") from None
    return None


_LOCKS: dict[str, Any] = {}


def _lock(run: Path) -> None:
    """Hold the run folder until `train` ends; the lock dies with a killed process too."""
    file = (run / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(
            f"{run}: another process is training into this folder; wait for it or use another --name"
        ) from None
    _LOCKS[str(run)] = file


def _steps(options: RunOptions, cost: StepCost, charged: float) -> int:
    if options.budget.steps is not None:
        return options.budget.steps
    if options.budget.examples is not None:
        return steps_within(options.budget.examples, options.optimization.batch_size)
    assert options.budget.budget_flops is not None
    return steps_within(options.budget.budget_flops, cost.total, charged)


def _check_disk(run: Path, models: dict[str, Model], options: RunOptions, steps: int) -> None:
    """Refuse what would fill the disk hours later: two checkpoints (the new one is whole before the old one goes), the
    final weights, and the selections."""
    weights = sum(4 * p.numel() for m in models.values() for p in m.module.parameters())
    rows = options.selection.selects * steps // options.records.selections_every * options.super_batch_size
    needed = 2 * (1 + OPTIMIZER_STATE) * weights + weights + SELECTION_BYTES * rows
    free = shutil.disk_usage(run).free
    if free < needed:
        raise RunError(
            f"{run}: needs about {needed / 1e9:.3g} GB for checkpoints and selections, {free / 1e9:.3g} GB are free; "
            "free space, choose another --out, or raise --selections-every"
        )


def step_cost(
    options: RunOptions, learner: Trainee, online: Trainee | None, scorer: Model | None, choosing: float = 0.0
) -> tuple[StepCost, list[str]]:
    """FLOPs of one step, measured once on the very shapes; and the operators that the measure left out.

    `scorer` is what scores the super-batch, at the resolution at which it does. `choosing` are the FLOPs that a joint
    policy's selection takes; they stand with those of the online score.
    """
    train = learner.train_flops(options.optimization.batch_size)
    uncounted = set(train.uncounted)
    online_score = online_train = 0.0
    if scorer is not None:
        scoring = forward_flops(scorer)
        uncounted.update(scoring.uncounted)
        online_score = scoring.per_example * options.super_batch_size
    if online is not None:
        training = online.train_flops(options.optimization.batch_size)
        uncounted.update(training.uncounted)
        online_train = float(training.total)
    cost = StepCost(learner_train=float(train.total), online_score=online_score + choosing, online_train=online_train)
    return cost, sorted(uncounted)


def _reference_ledger(table: ScoreTable | None) -> Ledger:
    if table is None:
        return Ledger()
    flops = table.manifest["flops"]
    return Ledger(reference_score=flops.get("reference_score") or 0.0, reference_train=flops["reference_train"])


def _manifest(
    dataset: DatasetSpec,
    shards: Sequence[Shard],
    models: dict[str, Model],
    table: ScoreTable | None,
    device: torch.device,
    precision: Precision,
    cost: StepCost,
    uncounted: list[str],
) -> dict[str, Any]:
    return {
        "versions": {
            "curate": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": version("timm"),
            "open_clip": version("open_clip_torch"),
        },
        "hardware": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {os.cpu_count()} cores",
        "precision": precision,
        "dataset": {**dataset.to_dict(), "fingerprint": dataset.fingerprint, "shards": len(shards)},
        "models": {
            name: {**m.spec.to_dict(), "weights": "", "preprocessing": m.preprocessing.to_dict()}
            for name, m in models.items()
        },
        "score_table": table
        and {
            "folder": table.folder,
            "reference": table.manifest["reference"],
            "flops_per_example": table.manifest["flops"]["forward_per_example"],
        },
        "flops_per_step": {k: getattr(cost, k) for k in ("learner_train", "online_score", "online_train")},
        "operators_not_counted": uncounted,
    }
