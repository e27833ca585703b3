"""The sub-batches of a run with actors, made from its options and models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import SpecError
from ..ledger import Ledger, StepCost
from ..scoring.flops import forward_flops
from ..scoring.selector import Selector
from .exchange import Exchange
from .lease_scorer import ScoringJob
from .leases import Plan
from .limiter import RateLimiter, buffer_of
from .pool import Pool
from .pooled import OVERLAP_LINES, Crew, PooledSubBatches
from .run_models import RunModels
from .scorer import RunScorer
from .setup import Setup
from .superbatch import SuperBatches
from .timing import Stages

# The most rows of a lease. Fewer, and asking takes longer than scoring; more, and a lost one costs more.
MOST_ROWS = 512


def exchange_of(
    setup: Setup, batches: SuperBatches, *, cost: StepCost, steps: int, row_flops: float, charged: float
) -> Exchange:
    """The plan, pool and limiter as the options have them. Raises SpecError where nobody knows how many rows shards have."""
    options, rows = setup.options, batches.row_counts
    if rows is None:
        raise SpecError(
            f"--actors lease rows, and nobody knows how many rows the shards of '{setup.dataset.name}' have; run "
            "score-reference, whose table counts them, use Parquet, or raise --host-bytes above the data's size"
        )
    asked, b, B = options.asynchronous, options.optimization.batch_size, options.super_batch_size
    scored, size = asked.scored_per_step(b, B), min(MOST_ROWS, B)
    budget = options.budget.budget_flops
    paid = math.inf
    if budget is not None:
        paid = (budget - charged - steps * (cost.learner_train + cost.online_train)) / row_flops
    return Exchange(
        Plan(seed=options.seed, lanes=batches.lanes, rows=rows, size=size),
        Pool(asked.held(B), asked.max_age),
        RateLimiter(b / scored, min(B, asked.held(B)), buffer_of(b / scored, size, b)),
        batch=b,
        row_flops=row_flops,
        most_rows=steps * scored,
        paid_rows=paid,
    )


def pooled_subs(
    setup: Setup,
    models: RunModels,
    batches: SuperBatches,
    selector: Selector,
    scorer: RunScorer,
    *,
    cost: StepCost,
    steps: int,
    charged: float,
    ledger: Ledger,
    timing: Stages,
    check: Callable[[Any], None],
    crew: Crew | None = None,
) -> PooledSubBatches:
    """Made from a run's parts; `crew` stands for actors."""
    options, model, table = setup.options, models.scorer, models.table
    assert model is not None
    asked = options.asynchronous
    exchange = exchange_of(
        setup, batches, cost=cost, steps=steps, row_flops=forward_flops(model).per_example, charged=charged
    )
    module = model.module

    def weights() -> Mapping[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}

    if crew is None:
        from .actors import RayCrew

        job = ScoringJob(
            dataset=setup.dataset,
            shards=list(setup.shards),
            table=None if table is None else (table.folder, table.manifest),
            on_missing=options.selection.on_missing,
            model=copy.deepcopy(model).to("cpu"),
            precision=setup.score_precision,
            micro_batch=options.optimization.micro_batch,
            host_bytes=options.data.host_bytes,
        )
        crew = RayCrew(job, asked.actors, setup.run.name, setup.records.log)
    return PooledSubBatches(
        batches,
        selector,
        exchange=exchange,
        crew=crew,
        weights=weights,
        refresh=asked.refresh,
        scorer=scorer,
        ledger=ledger,
        steps=steps,
        overlap_every=OVERLAP_LINES * options.records.log_every,
        waiting=setup.stop.released,
        device=setup.device,
        timing=timing,
        check=check,
    )
