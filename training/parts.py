"""The parts of a run, made from its options and models: what it costs, its streams, who chooses, the loop's job."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..datasets.decoders import default_processes
from ..datasets.shards import Shard
from ..errors import SpecError
from ..ledger import Ledger, StepCost
from ..scoring.flops import forward_flops, step_cost
from ..scoring.models import EvaluationFlops, Model
from ..scoring.selector import Selector
from ..scoring.settings import ContrastiveLoss
from . import frozen, moving_reference, startup
from .autopilot import Autopilot
from .finish import quality_of
from .hardware import device_peak
from .keeping import Keeping
from .loop import TrainingJob
from .mixture import MIXED_FROM
from .moving_reference import MovingReference
from .pace import Pace
from .past import LAST_PRUNED, PastLosses
from .pooling import pooled_subs
from .refusals import refuse_misfits
from .replay import ReplayScorer
from .replay_rows import ReplayedRows
from .run_models import RunModels
from .scorer import ONLINE, REFERENCE, RunScorer
from .scorers import ScorersSubBatches
from .setup import Setup
from .sub import SubBatches
from .superbatch import SuperBatches
from .timing import Stages


@dataclass(frozen=True)
class RunCost:
    """FLOPs: of a `step`, of one example scored by the reference, and what the budget was `charged` before step 1.

    `made_in_run` is the reference, where it scores during the run what the table lacks, or all where there is none.
    """

    step: StepCost
    uncounted: list[str]
    ledger: Ledger
    steps: int
    reference: float
    made_in_run: Model | None
    charged: float


@dataclass(frozen=True)
class Resolved:
    """What the options left open."""

    scale: float
    augment: str
    warmup: int
    cooldown: int | None
    joint_loss: ContrastiveLoss
    choosing: dict[str, int]

    def to_dict(self, models: RunModels) -> dict[str, Any]:
        """As manifest.json has it."""
        return {
            **{f"{name} lr": trainee.lr for name, trainee in models.trainees.items()},
            "augment": self.augment,
            "warmup": self.warmup,
            "score scale": self.scale,
            "joint loss": self.joint_loss,
            **({} if self.cooldown is None else {"cooldown": self.cooldown}),
            **self.choosing,
        }


def cost_of(setup: Setup, models: RunModels, joint_loss: ContrastiveLoss) -> RunCost:
    """What a step costs, and how many the budget buys. Raises BudgetError where it is not even one."""
    options = setup.options
    step, uncounted = step_cost(
        models.learner.model,
        models.online.model if models.online else None,
        models.scorer,
        sub_batch=options.optimization.batch_size,
        super_batch=options.scored_per_step,
        label_smoothing=options.optimization.label_smoothing,
        accumulate=options.optimization.accumulate,
        choosing=startup.joint_flops(options, models.scorer, joint_loss, models.table),
        reference=models.moving.model if models.moving else None,
        reference_scorer=models.reference if models.moving else None,
    )
    grows = setup.growing is not None
    ledger = startup.reference_ledger(models.table, setup.mix, setup.prior, grows=grows)
    reference = forward_flops(models.reference).per_example if models.reference else 0.0
    made_in_run = models.reference if models.moving or options.selection.on_missing == "score" else None
    share = startup.missing_share(models.table, setup.shards) if made_in_run else 0.0
    charged = startup.charged_to(options, ledger, models.table)
    steps = startup.steps_of(options, step, charged, share * options.super_batch_size * reference)
    if setup.recorded is not None:
        step = replace(step, choices=setup.recorded.flops_per_step)
        steps = min(steps, setup.recorded.steps)
    if models.rescored:
        ledger.add_outside("verification", reference * models.rescored)
    return RunCost(step, uncounted, ledger, steps, reference, made_in_run, charged)


def resolve(setup: Setup, models: RunModels, joint_loss: ContrastiveLoss, steps: int) -> Resolved:
    """Settings that follow from the task, the policy and the number of steps where the user gave none."""
    options, task = setup.options, models.learner.model.task
    scale = options.selection.score_scale
    if scale is None:
        scale = 1.0 if options.selection.joint else task.score_scale
    augment = options.optimization.augment or task.augment
    # Another number of ranks would choose otherwise, so a resume has as many.
    choosing = {"ranks that choose": setup.group.size} if options.sharing.local else {}
    if models.moving:
        choosing["super-batches a reference step"] = options.reference_every
    if setup.mix is not None:
        choosing[MIXED_FROM] = startup.mix_first(options, steps, setup.recorded)
    rate = options.optimization
    cooldown = None if rate.cooldown is None else round(rate.cooldown * steps)
    return Resolved(scale, augment, round(rate.warmup * steps), cooldown, joint_loss, choosing)


def manifest_of(
    setup: Setup,
    models: RunModels,
    cost: RunCost,
    resolved: Resolved,
    weights: dict[str, str],
    test_shards: Sequence[Shard] | None,
) -> dict[str, Any]:
    """The content of manifest.json. `weights` are the digests of the weights before step 1, by model."""
    table, shards = models.table, setup.shards
    frozen_now = {
        "train": frozen.shards_of(shards),
        "test": frozen.shards_of(test_shards) if test_shards is not None else None,
        "weights": weights,
        "score_table": frozen.table_of(table, shards) if table is not None else None,
        "steps": cost.steps,
        "settings": {**resolved.to_dict(models), "score precision": setup.score_precision},
        **(frozen.mix_of(setup.mix) if setup.mix is not None else {}),
        **({"prior table": frozen.table_of(setup.prior, shards)} if setup.prior is not None else {}),
        **({"replay": setup.recorded.frozen()} if setup.recorded is not None else {}),
    }
    return startup.manifest_of(
        setup.dataset,
        shards,
        models.trained,
        table,
        setup.device,
        setup.precision,
        cost.step,
        cost.uncounted,
        frozen_now,
    )


def batches_of(setup: Setup, models: RunModels, cost: RunCost) -> SuperBatches:
    """The stream of super-batches, in the views of all models that see them."""
    options = setup.options
    seen = {**models.trained, ONLINE: models.scorer, REFERENCE: cost.made_in_run}
    views = {name: model.geometry for name, model in seen.items() if model}
    processes = options.data.decode_processes
    mix_first = startup.mix_first(options, cost.steps, setup.recorded) if setup.mix is not None else 1
    return SuperBatches(
        setup.dataset,
        options.super_batch_size,
        views=views,
        tokenize={name: model.tokenizer for name, model in seen.items() if model and model.tokenizer},
        scores=models.table,
        kept=startup.kept_of(options, models.table, setup.prior, setup.shards, setup.records.log),
        mix=startup.mix_begun(setup.mix, options, mix_first, setup.records.log),
        embeddings=options.selection.joint,
        logits=options.optimization.distill > 0,
        on_missing=options.selection.on_missing,
        seed=options.seed if setup.recorded is None else setup.recorded.seed,
        lanes=setup.lanes,
        max_failures=options.data.max_failures,
        max_bad_shards=options.data.max_bad_shards,
        host_bytes=options.data.host_bytes if setup.roles.scores else 1,  # else it would read what it does not need
        cache_bytes=options.data.cache_bytes,
        decode_processes=default_processes(views.values()) if processes is None else processes,
        shards=setup.growing or setup.shards,
        verify=False,  # open_reference did
        group=setup.roles.scorers,
        waiting=setup.stop.released,
    )


def scorer_of(setup: Setup, models: RunModels, cost: RunCost) -> RunScorer | ReplayScorer | PastLosses:
    """Who scores super-batches, within the budget."""
    if setup.recorded is not None:
        return ReplayScorer(setup.recorded)
    if setup.options.selection.chosen_policy.prunes:
        return PastLosses(setup.group, round(LAST_PRUNED * cost.steps))
    options, table = setup.options, models.table
    budget = options.budget.budget_flops
    return RunScorer(
        policy=options.selection.chosen_policy,
        model=models.scorer,
        forward=models.forward,
        whole=models.learner.whole if models.online is None else nullcontext,
        reference=cost.made_in_run,
        reference_cost=cost.reference,
        ledger=cost.ledger,
        precision=setup.score_precision,
        micro_batch=options.optimization.micro_batch,
        reference_scale=(table.manifest.get("scale") if table else None) or 1.0,
        reference_bias=(table.manifest.get("bias") if table else None) or 0.0,
        budget=None if budget is None else budget - cost.charged,
        step_flops=cost.step.total,
        reference_forward=models.reference_forward,
        more_views=(moving_reference.NAME,) if models.moving else (),
    )


def selector_of(setup: Setup, resolved: Resolved) -> Selector:
    """Who chooses by the scores."""
    selection = setup.options.selection
    if setup.recorded is not None:
        return Selector(selection.chosen_policy, setup.options.optimization.batch_size, sampler="topk")
    return Selector(
        selection.policy,
        setup.options.optimization.batch_size,
        sampler=selection.sampler,
        temperature=selection.temperature,
        scale=resolved.scale,
        chunks=selection.chunks,
        joint_loss=resolved.joint_loss,
        seed=startup.stream_seed(setup.options.seed, "select"),
    )


def subs_of(setup: Setup, models: RunModels, cost: RunCost, resolved: Resolved, timing: Stages) -> SubBatches:
    """The stream of sub-batches: chosen here, of what actors scored, or on the ranks that score."""
    options, scorer = setup.options, scorer_of(setup, models, cost)
    batches, selector = batches_of(setup, models, cost), selector_of(setup, resolved)
    checked = [model for model in (*models.trained.values(), cost.made_in_run) if model]
    check = partial(refuse_misfits, checked)
    if options.asynchronous.actors:
        assert isinstance(scorer, RunScorer)
        counted: Any = {"cost": cost.step, "steps": cost.steps, "charged": cost.charged, "ledger": cost.ledger}
        return pooled_subs(setup, models, batches, selector, scorer, **counted, timing=timing, check=check)
    if options.asynchronous.scorers:
        assert isinstance(scorer, RunScorer)
        return ScorersSubBatches(
            batches,
            selector,
            roles=setup.roles,
            refresh=options.asynchronous.refresh,
            scorer=scorer,
            last=cost.steps,
            device=setup.device,
            timing=timing,
            check=check,
        )
    by_name = setup.recorded is not None and bool(setup.recorded.config.get("actors"))
    kind: Any = ReplayedRows if by_name else SubBatches
    made: SubBatches = kind(
        batches,
        selector,
        scorer=scorer,
        device=setup.device,
        timing=timing,
        check=check,
        charge=scorer.charge,
        score_ahead=options.selection.score_ahead,
        last=cost.steps,
        local=options.sharing.local,
    )
    return made


def job_of(setup: Setup, models: RunModels, cost: RunCost, resolved: Resolved) -> TrainingJob:
    """All that the loop works with."""
    options, timing = setup.options, Stages(setup.device, compiled=models.learner.compiled)
    peak = device_peak(setup.device, setup.precision)
    # What actors score, they count themselves.
    of_step = replace(cost.step, online_score=0.0) if options.asynchronous.actors else cost.step
    subs = subs_of(setup, models, cost, resolved, timing)
    return TrainingJob(
        past=subs.scorer if isinstance(subs.scorer, PastLosses) else None,
        auto=_autopilot_of(setup, models, cost, resolved),
        run=setup.run,
        subs=subs,
        learner=models.learner,
        online=models.online,
        steps=cost.steps,
        warmup=resolved.warmup,
        cooldown=resolved.cooldown,
        augment=resolved.augment,
        augmenting=torch.Generator().manual_seed(startup.stream_seed(options.seed, "augment")),
        cost=of_step,
        ledger=cost.ledger,
        records=setup.records,
        pace=Pace(
            cost.steps,
            options.optimization.batch_size,
            log_every=options.records.log_every,
            checkpoint_every=options.records.checkpoint_every,
            report=setup.records,
        ),
        timing=timing,
        stop=setup.stop,
        keeping=_keeping_of(setup, models, cost),
        peak=None if peak is None else peak * setup.group.size,
        reference=_moving_of(setup, models, cost, resolved),
    )


def _moving_of(setup: Setup, models: RunModels, cost: RunCost, resolved: Resolved) -> MovingReference | None:
    """The reference that trains during the run, if one does."""
    if models.moving is None:
        return None
    every = setup.options.reference_every
    if every > cost.steps:
        raise SpecError(
            f"the reference learns after every {every:,} super-batches and the run has {cost.steps:,} steps, so it would never "
            "learn; lower --reference-every, or make the run longer"
        )
    seed = startup.stream_seed(setup.options.seed, "augment reference")
    return MovingReference(
        trainee=models.moving,
        every=every,
        augment=resolved.augment,
        augmenting=torch.Generator().manual_seed(seed),
    )


def _autopilot_of(setup: Setup, models: RunModels, cost: RunCost, resolved: Resolved) -> Autopilot | None:
    """The probe of a policy that asks for one."""
    budget, twin, online = setup.options.budget.budget_flops, models.twin, models.online
    if twin is None or online is None or budget is None:
        return None
    return Autopilot(
        twin,
        online,
        cost.step,
        forward=forward_flops(online.model).per_example,
        training=cost.step.online_train,
        planned=cost.steps,
        budget=budget - cost.charged,
        how=resolved.augment,
        precision=setup.score_precision,
        seed=startup.stream_seed(setup.options.seed, "probe"),
    )


def _keeping_of(setup: Setup, models: RunModels, cost: RunCost) -> Keeping:
    """What is measured and kept on the way."""
    options, learner = setup.options, models.learner
    evaluates = options.records.evaluate and setup.dataset.test
    # Shards of a model could not be measured later.
    flops = learner.model.task.evaluation_flops(learner.model) if evaluates else EvaluationFlops(0.0)
    reference = models.reference if evaluates and models.moving is None else None

    def quality(model: Model, flops: EvaluationFlops, outside: dict[str, float]) -> dict[str, float]:
        how = (setup.device, setup.precision, setup.group)
        return quality_of(options, model, setup.dataset, outside, *how, flops)

    def measure() -> dict[str, float]:
        setup.roles.send(learner.result.module)  # all ranks evaluate
        return quality(learner.result, flops, cost.ledger.outside)

    def measure_reference() -> dict[str, float]:
        assert reference is not None
        own: dict[str, float] = {}
        found = quality(reference, reference.task.evaluation_flops(reference), own)
        cost.ledger.outside["reference_evaluation"] = own["evaluation"]  # once, also where a run resumes
        return found

    return Keeping(
        setup.run,
        learner,
        setup.records,
        measure,
        measure_reference=measure_reference if reference is not None else None,
        quality=learner.model.task.quality,
        steps=cost.steps,
        evaluate_every=options.records.evaluate_every if setup.dataset.test else None,
        keep_every=options.records.keep_every,
        group=setup.group,
    )
