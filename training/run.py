"""`curate train`: from options to a run folder. Everything is checked before the first step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset, load_config
from ..errors import CurateError
from ..scoring.flops import unusual
from ..scoring.forward import best_device, float32_products
from ..scoring.gradients import batch_norms
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..units import Report, counted, format_flops
from . import checkpoint, folder, frozen, parts, startup
from .epochs import GrowingEpochs
from .evaluate import check_test_split
from .finish import evaluate_again, finish, told
from .group import Group
from .hardware import deterministic_kernels
from .landing import growing_epochs, refuse_follow
from .loop import TrainingJob, train_loop
from .memory import check_memory
from .moving_reference import NAME
from .needs import needs_of
from .options import RunOptions
from .records import RunRecords, write_json
from .refreshing import refreshed_table, refuse_refresh
from .replay import RecordedRun
from .roles import Roles
from .run_models import RunModels, build_models
from .setup import Setup
from .signals import Stop, handled_by
from .unused import unused, unused_line


def train(
    options: RunOptions,
    *,
    config: Config | None = None,
    resume: bool = False,
    report: Report = print,
    group: Group | None = None,
) -> dict[str, Any]:
    """Train one learner under one policy and return its summary (also `summary.json` of the run folder).

    With `resume`, a run that was interrupted continues from its last checkpoint, and a finished one is returned as it
    is. In a `group` of processes all ranks call it and share the work of one run: rank 0 writes the folder and reports.
    Raises CurateError before step 1 for whatever can be known by then; in a group on all ranks.
    """
    group = group or Group()
    recorded = None
    with group.together():
        startup.refuse_shards(options, group.size)
        options.asynchronous.check_here(group.size, options.optimization.batch_size)
        refuse_refresh(options, group.size)
        config = config if config is not None else load_config()
        recorded = RecordedRun(options.selection.replay) if options.selection.replay is not None else None
        if recorded is not None:
            options = recorded.settle(options)
        run = Path(options.records.out, options.records.name or folder.default_name(options))
        dataset = find_dataset(options.dataset, config)
        if options.data.follow:
            refuse_follow(dataset, group.size)
    group.refuse_differences(options.to_dict())
    began = group.first((run / "config.json").exists)
    finished = group.first(lambda: folder.open_folder(run, options, resume, report))
    if finished is not None:
        if "not_evaluated" in finished and options.records.evaluate and dataset.test:
            return evaluate_again(options, config, dataset, run, finished, report, group)
        if group.is_first:
            report(f"{run}: already finished, nothing to do")
        return finished
    stop = Stop()
    try:
        with handled_by(stop):
            records = RunRecords(run, report, writes=group.is_first)
            with group.together():
                records.track(options)
            with closing(records):
                return _train(options, config, dataset, run, records, stop, recorded, group)
    except BaseException as e:
        if group.is_first:
            _leave(run, e, began, report)
        raise
    finally:
        if group.is_first:
            folder.LOCKS.pop(str(run)).close()


def _leave(run: Path, error: BaseException, began: bool, report: Report) -> None:
    """After an error: leave no folder of a run that trained nothing, since the next attempt would trip over it."""
    refused = isinstance(error, CurateError) and not (run / "metrics.jsonl").exists() and not checkpoint.exists(run)
    if not began and (refused or not (run / "config.json").exists()):
        shutil.rmtree(run, ignore_errors=True)
    else:
        with suppress(CurateError, OSError):  # a full disk may be what stopped it
            RunRecords(run, report).note(f"{told(error)}; {_next(run)}")  # the error itself is said by who catches it


def _next(run: Path) -> str:
    if (run / "summary.json").exists():
        return "--resume evaluates it"
    return "--resume continues from the last checkpoint" if checkpoint.exists(run) else "--resume begins it anew"


def _train(
    options: RunOptions,
    config: Config,
    dataset: DatasetSpec,
    run: Path,
    records: RunRecords,
    stop: Stop,
    recorded: RecordedRun | None,
    group: Group,
) -> dict[str, Any]:
    started = time.perf_counter()
    device = best_device()
    began, lanes, (precision, score_precision) = group.first(
        lambda: (
            folder.began_with(run),
            folder.settled_lanes(run, options),
            folder.settled_precisions(run, options, device),
        )
    )
    roles = Roles.of(group, options.asynchronous.scorers)
    with group.together():
        growing, opened = _followed(options, dataset, run, records, bool(began), recorded)
        shards = growing.began if growing else list_shards(dataset)
        opened = opened or _refreshed(options, shards, run, records, bool(began), recorded)
        setup = Setup(
            options=options,
            config=config,
            dataset=dataset,
            shards=shards,
            growing=growing,
            opened=opened,
            run=run,
            records=records,
            device=device,
            precision=precision,
            score_precision=score_precision,
            stop=stop,
            recorded=recorded,
            group=group,
            roles=roles,
            began=began,
            lanes=lanes,
            mix=startup.mix_of(options, dataset, config, recorded),
            prior=startup.prior_of(options, dataset, shards, group.is_first),
        )
        with _kernels(setup):
            models, cost, job, selections_every = _prepared(setup)
    records.record_selections(group.share(selections_every)[0])
    group.refuse_differences(
        {"shards": len(setup.shards), "steps": cost.steps, "FLOPs a step": cost.step.total, "device": device.type}
    )
    _introduce(setup, models, cost, job)
    torch.manual_seed(options.seed if group.is_first else startup.stream_seed(options.seed, f"rank {group.rank}"))
    with _kernels(setup):
        models.join(job.subs.least_rows, options.super_batch_size // group.size)
        done = train_loop(job)
        return finish(options, dataset, job, done, models.table, started)


def _followed(
    options: RunOptions,
    dataset: DatasetSpec,
    run: Path,
    records: RunRecords,
    began: bool,
    recorded: RecordedRun | None,
) -> tuple[GrowingEpochs | None, ScoreTable | None]:
    """The epochs of a data set that is followed, and its score table."""
    if not options.data.follow:
        return None, None
    scores = options.selection.reference_scores
    reads = options.uses_table or (recorded is not None and recorded.reads_table)
    table = open_scores(scores) if scores and reads else None
    folder = recorded.folder if recorded else None
    return growing_epochs(run, dataset, table, records.log, began=began, recorded=folder), table


def _refreshed(
    options: RunOptions,
    shards: Sequence[Shard],
    run: Path,
    records: RunRecords,
    began: bool,
    recorded: RecordedRun | None,
) -> ScoreTable | None:
    """The score table, where newer losses take the place of its own while the run trains."""
    scores, newer = options.selection.reference_scores, options.selection.refresh_scores
    if scores is None or newer is None:
        return None
    folder = recorded.folder if recorded else None
    return refreshed_table(run, open_scores(scores), newer, shards, records.log, began=began, recorded=folder)


@contextmanager
def _kernels(setup: Setup) -> Iterator[None]:
    """Within, a GPU rounds float32 as the run's precision has it, and gives the same bits every time where that is asked for."""
    asked = setup.options.optimization.deterministic
    deterministic = deterministic_kernels(setup.device) if asked else nullcontext()
    with float32_products(setup.device, setup.precision), deterministic:
        yield


def _prepared(setup: Setup) -> tuple[RunModels, parts.RunCost, TrainingJob, int]:
    """All that is made and checked before step 1, and how many steps lie between records of selections. Rank 0 checks for
    all what takes long, and writes what the run begins with."""
    options, dataset, run, records = setup.options, setup.dataset, setup.run, setup.records
    first = setup.group.is_first
    evaluates = options.records.evaluate and bool(dataset.test)
    test_shards = check_test_split(dataset, options.data.max_failures) if evaluates and first else None
    models = build_models(setup)
    weights = {name: frozen.weights_of(model) for name, model in models.trained.items()} if first else {}
    joint_loss = startup.joint_loss_of(options, models.scorer or models.learner.model, models.table)
    cost = parts.cost_of(setup, models, joint_loss)
    resolved = parts.resolve(setup, models, joint_loss, cost.steps)
    manifest = parts.manifest_of(setup, models, cost, resolved, weights, test_shards) if first else {}
    if setup.began and first:
        folder.refuse_other_beginning(run, manifest, records.log)

    job = parts.job_of(setup, models, cost, resolved)
    batches = job.subs.batches
    check_memory(needs_of(setup, models, cost, job.subs), records.log)
    if not first:
        return models, cost, job, 1
    every = folder.settled_selections(run, options, cost.steps)
    startup.check_disk(run, models.saved, options, cost.steps, every)
    if not (run / "config.json").exists():  # a resumed run keeps what it began with
        write_json(run / "manifest.json", manifest)
        write_json(run / "config.json", options.but(lanes=batches.lanes, selections_every=every).to_dict())
    return models, cost, job, every


def _introduce(setup: Setup, models: RunModels, cost: parts.RunCost, job: TrainingJob) -> None:
    """Say what begins."""
    selector, batches, log = job.subs.selector, job.subs.batches, setup.records.log
    if setup.group.size == 1 and (asked := setup.options.sharing.asked):
        log(f"{' and '.join(asked)}: of no effect, since one process trains this run; torchrun starts several")
    if names := unused(setup.options):
        replay = setup.options.selection.replay
        log(unused_line(names, f"with policy '{selector.policy}'" if replay is None else f"with --replay {replay}"))
    if setup.options.records.evaluate_every is not None and not setup.dataset.test:
        log(f"--evaluate-every: of no effect, since data set '{setup.dataset.name}' has no test split")
    log(
        f"{setup.run}: {selector.policy}, {counted(cost.steps, 'step')} of {selector.b} (super-batch {batches.size}, "
        f"{counted(batches.lanes, 'lane')}), {format_flops(cost.step.total)} a step, "
        f"{format_flops(cost.step.total * cost.steps)} in all, on {_devices(setup)} in {setup.precision}"
        + (f", scored in {setup.score_precision}" if setup.score_precision != setup.precision else "")
    )
    moving = job.reference
    if moving is not None:
        log(
            f"reference '{moving.trainee.model.spec.name}' trains during the run on all that is drawn: a step after every "
            f"{moving.every:,} super-batches, on {moving.every * batches.size:,} examples, with a peak rate of "
            f"{moving.trainee.lr:g}"
        )
    count = setup.options.optimization.accumulate * (1 if setup.options.sharing.sync_bn else setup.roles.training)
    named = {"learner": "the learner", "online": "the online model", NAME: "the reference"}
    normalising = [named[name] for name, model in models.trained.items() if batch_norms(model.module)]
    if count > 1 and normalising:
        log(
            f"BatchNorm layers of {' and '.join(normalising)} normalise over each of {count} parts of a batch, not over all "
            "of it: gradients differ from those of the whole batch"
        )
    zero = unusual(cost.uncounted)
    if zero:
        log(
            f"{', '.join(zero)}: no formula is known, so the ledger counts their FLOPs as zero; manifest.json lists all such"
        )


def _devices(setup: Setup) -> str:
    ranks, scoring = setup.group.size, setup.roles.scoring
    of_them = (
        ""
        if not scoring
        else ", the last of which scores,"
        if scoring == 1
        else f", the last {scoring} of which score,"
    )
    return str(setup.device) if ranks == 1 else f"{ranks} ranks of {setup.device.type}{of_them}"
