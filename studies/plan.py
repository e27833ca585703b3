"""`curate plan`: what choosing will cost and what it must save, before anything is spent."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..errors import ModelError, SpecError, TableError
from ..ledger import StepCost, steps_within
from ..scoring.coarse import coarsened
from ..scoring.flops import forward_flops, step_cost, train_flops, unusual
from ..scoring.gradients import checkpoint_activations
from ..scoring.loading import find_model, load_model
from ..scoring.models import Model, ModelSpec
from ..scoring.settings import super_batch_size
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..scoring.tables.reference import reference_of_table
from ..scoring.tables.run_costs import recorded_quality, recorded_train_flops
from ..scoring.tasks import find_task
from ..training import autopilot
from ..training.startup import coarse_of
from .options import PlanOptions
from .planned import Plan


def make_plan(options: PlanOptions, config: Config, *, watches: bool = False) -> Plan:
    """Plan from a bare ratio, or from models whose FLOPs are measured on shapes alone: nothing is downloaded or run.
    `watches`: the run watches whether choosing pays, as under policy auto.

    Raises CurateError for a model, data set or table that cannot be used, for a reference whose training cost nobody
    knows, and BudgetError for a budget below one step.
    """
    if options.ratio is not None:
        return plan_from_ratio(options, watches)
    return plan_from_models(options, config, watches)


def plan_from_ratio(options: PlanOptions, watches: bool = False) -> Plan:
    """In units of uniform's total, training taken as three forwards and the reference as large as the online model.

    With r the ratio and f the filter ratio, a step adds r / (3 (1 - f)) for scoring the super-batch and r for
    training the sub-batch; the reference adds r / (3 (1 - f)) a step, and r once for as many steps as uniform's.
    """
    r = options.ratio
    assert r is not None
    score = r / (3 * (1 - options.selection.filter_ratio))
    step = StepCost(learner_train=1.0, online_score=score, online_train=r)
    watched = autopilot.WATCHED / step.total if watches else 0.0
    watching = autopilot.watching(step, 1, r / 3, r).times(watched)
    return Plan(
        ratio=r,
        filter_ratio=options.selection.filter_ratio,
        step=step,
        uniform_steps=1.0,
        steps=(1 - watching.total) / step.total,
        reference_step=score,
        reference_train=r,
        watching=watching,
        runs=options.runs,
        relative=True,
        expected_saving=options.expected_saving,
        notes=(
            "training taken as 3 forwards; the reference is as large as the online model",
            _NOT_STORED,
            _AS_LONG_AS_UNIFORM,
            *([_WATCHES] if watches else []),
        ),
    )


_NOT_STORED = "reference scores: not stored, each run's super-batches are scored anew"
_AS_LONG_AS_UNIFORM = "reference training: not known, taken as long as the uniform run"
_WATCHES = "watching whether choosing pays: counted for half of the steps, as where it does pay"


def plan_from_models(options: PlanOptions, config: Config, watches: bool = False) -> Plan:
    """In FLOPs, measured as `curate train` measures them."""
    assert options.dataset
    dataset = find_dataset(options.dataset, config)
    selection, b = options.selection, options.optimization.batch_size
    assert options.learner and selection.online and options.budget_flops
    B = super_batch_size(b, selection.filter_ratio)
    table = _open_table(selection.reference_scores, dataset) if selection.reference_scores else None
    coarse = coarse_of(selection, table)
    reference_spec = _reference_spec(options, table, dataset, config)
    moving = selection.reference_online is not None

    learner = _build(_find(options.learner, dataset, config))
    online = _build(_find(selection.online, dataset, config))
    reference = _build(reference_spec) if reference_spec else online
    scorer, scoring_reference = (coarsened(model, coarse) if coarse else model for model in (online, reference))
    if options.optimization.grad_checkpointing:
        checkpoint_activations(learner)
    cost, uncounted = step_cost(
        learner,
        online,
        scorer,
        sub_batch=b,
        super_batch=B,
        label_smoothing=options.optimization.label_smoothing,
        accumulate=options.optimization.accumulate,
        reference=reference if moving else None,
        reference_scorer=scoring_reference if moving else None,
    )
    steps = steps_within(options.budget_flops, cost.total)
    each = autopilot.watching(cost, b, forward_flops(online).per_example, cost.online_train)
    watching = each.times(autopilot.watched(steps) if watches else 0)
    steps = max(1, steps - math.ceil(watching.total / cost.total))
    uniform_steps = steps_within(options.budget_flops, cost.learner_train)

    notes = [] if reference_spec or table else ["reference: not given, taken as large as the online model"]
    notes += [_WATCHES] if watches else []
    score_one = forward_flops(scoring_reference).per_example
    score_once = score_each = 0.0
    if moving:
        notes.append("reference: trains in the run on every super-batch; each run pays for all of it")
    elif table is not None:
        score_once = float(table.manifest["flops"]["reference_score"])
        notes.append(f"reference scores: {_examples(table):,} examples, as {_from_here(table.folder)} says")
    elif options.data_size is not None:
        score_once = score_one * options.data_size
        notes.append(f"reference scores: {options.data_size:,} examples, once")
    else:
        score_each = score_one * B
        notes.append(f"{_NOT_STORED}; --data-size N plans a score table")
    train_once = 0.0
    if not moving:
        known = reference if reference_spec else None
        train_once, note = _reference_training(options, table, known, online, uniform_steps)
        notes.append(note)
    notes += _reference_quality(options, table, learner)
    also_scored, also_trained, also_said = _other_tables(options, config)
    notes += also_said
    zero = unusual(uncounted)
    if zero:
        notes.append(f"operators without a formula, which count as zero FLOPs: {', '.join(zero)}")
    return Plan(
        ratio=cost.online_score / B / forward_flops(learner).per_example,
        filter_ratio=selection.filter_ratio,
        step=cost,
        uniform_steps=uniform_steps,
        steps=steps,
        reference_step=score_each,
        reference_score=score_once + also_scored,
        reference_train=train_once + also_trained,
        watching=watching,
        runs=options.runs,
        budget=options.budget_flops,
        expected_saving=options.expected_saving,
        notes=tuple(notes),
    )


def _other_tables(options: PlanOptions, config: Config) -> tuple[float, float, list[str]]:
    """FLOPs of scoring what is mixed in and of a second reference's scores, FLOPs of its training, and what to say."""
    notes = []
    if options.data.mixture is not None:
        name, share = options.data.mixture
        find_dataset(name, config)
        last = f" in the last {options.data.mix_last:.0%} of the steps" if options.data.mix_last < 1 else ""
        notes.append(f"mixture: {share:.3g} of every super-batch from '{name}'{last}; a step costs the same")
        if options.selection.reference_scores and not options.data.mix_scores:
            notes.append("scores of the mixture: --mix-scores names no table of them, so they are not counted")
    scored = trained = 0.0
    mixed, prior = options.data.mix_scores, options.selection.prior_scores
    for table, what in [(open_scores(path), what) for path, what in ((mixed, "mixture"), (prior, "prior")) if path]:
        _refuse_unfinished(table)
        flops = table.manifest["flops"]
        scored += flops["reference_score"]
        notes.append(f"scores of the {what}: {_examples(table):,} examples, as {_from_here(table.folder)} says")
        if what == "mixture":
            continue
        trained += flops["reference_train"] or 0.0
        if flops["reference_train"] is None:
            notes.append("training of the prior: its table does not know what it cost, so it is not counted")
    return scored, trained, notes


def _reference_training(
    options: PlanOptions, table: ScoreTable | None, reference: Model | None, online: Model, uniform_steps: int
) -> tuple[float, str]:
    """(FLOPs of training the reference, where the figure comes from)."""
    steps, b = options.reference_steps, options.optimization.batch_size
    note = f"reference training: {steps:,} steps of {b}" if steps is not None else _AS_LONG_AS_UNIFORM
    if steps is None:
        recorded = recorded_train_flops(options.selection.reference) if options.selection.reference else None
        if table is not None:
            recorded = _recorded(table)
        if recorded is not None:
            return recorded, "reference training: as recorded by the run that made it"
        steps = uniform_steps
    if reference is None and table is not None:
        forward = float(table.manifest["flops"]["forward_per_example"])
        return 3 * forward * b * steps, f"{note}; training taken as 3 forwards, as the table counted them"
    model = reference or online
    training = train_flops(model, model.task.training_loss(model), b)
    return float(training.total * steps), note


def _reference_quality(options: PlanOptions, table: ScoreTable | None, learner: Model) -> list[str]:
    """What is known of the reference's quality: choosing by it gains little once the learner has passed it."""
    name = table.manifest["reference"]["name"] if table is not None else options.selection.reference
    if not name or (table is not None and "://" in name):  # no address is opened because a table names it
        return []
    found = recorded_quality(name, learner.task.quality)
    if found is None or (table is not None and recorded_train_flops(name) != _recorded(table)):
        return []  # not known, or another run has taken the folder
    quality, dataset = found
    return [
        f"reference: {learner.task.quality} {quality:.4g} on the test split of '{dataset}'; a learner that passes it within the"
        " budget gained little by choosing where that was measured (docs/findings.md)"
    ]


def _reference_spec(
    options: PlanOptions, table: ScoreTable | None, dataset: DatasetSpec, config: Config
) -> ModelSpec | None:
    """The reference's architecture; None where it is the online model's. Refuses one whose cost nobody can tell."""
    spec: ModelSpec | None = None
    if options.selection.reference_online is not None:
        return _find(options.selection.reference_online, dataset, config)
    if table is not None:
        spec = _spec_of(table, options, dataset, config)
        about = table.manifest["reference"]
        name, weights, recorded = about["name"], about["model"].get("weights"), _recorded(table)
    elif options.selection.reference is not None:
        spec = _find(options.selection.reference, dataset, config)
        name, weights, recorded = spec.name, spec.weights, recorded_train_flops(options.selection.reference)
    else:
        return None
    if weights == "published" and recorded is None and options.reference_steps is None:
        raise SpecError(
            f"reference '{name}': what its published weights cost to train is not recorded; give "
            "--reference-steps (examples it saw / --batch-size; 0 where that was not yours to pay)"
        )
    return spec


def _spec_of(table: ScoreTable, options: PlanOptions, dataset: DatasetSpec, config: Config) -> ModelSpec | None:
    """The model behind a table; None where it is not the user's own and the table is not trusted."""
    name, trust = options.selection.reference, options.selection.trust_table
    try:
        return reference_of_table(table, dataset, config, name=name, trust=trust)
    except ModelError:
        if name or trust:
            raise
        return None


def _recorded(table: ScoreTable) -> float | None:
    found: float | None = table.manifest["flops"]["reference_train"]
    return found


def _open_table(path: str, dataset: DatasetSpec) -> ScoreTable:
    table = open_scores(path)
    if (table.manifest["dataset"], table.manifest["dataset_fingerprint"]) != (dataset.name, dataset.fingerprint):
        raise TableError(
            f"{table.folder}: scores data set '{table.manifest['dataset']}' ({table.manifest['dataset_fingerprint']}), "
            f"this plan is for '{dataset.name}' ({dataset.fingerprint}); give the table of this data set"
        )
    _refuse_unfinished(table)
    return table


def _refuse_unfinished(table: ScoreTable) -> None:
    if table.manifest["flops"].get("reference_score") is None:
        raise TableError(f"{table.folder}: is not finished, so its cost is unknown; run 'curate score-reference' again")


def _from_here(folder: str) -> str:
    """A folder below the working folder without the way to it."""
    return folder.removeprefix(f"{Path.cwd()}/")


def _examples(table: ScoreTable) -> int:
    counts = table.manifest["counts"]
    return int(counts["examples"]) + int(counts["failures"])


def _find(name: str, dataset: DatasetSpec, config: Config) -> ModelSpec:
    return find_model(name, task=dataset.task, num_classes=dataset.num_classes, config=config)


def _build(spec: ModelSpec) -> Model:
    """The model at full size without its weights: shapes decide the FLOPs, so nothing is fetched for a plan."""
    return load_model(replace(find_task(spec.task).without_weights(spec), coarse={}))
