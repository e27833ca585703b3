"""What a run needs memory for, from its parts."""

from __future__ import annotations

from .memory import Needs
from .parts import RunCost
from .run_models import RunModels
from .setup import Setup
from .sub import SubBatches


def needs_of(setup: Setup, models: RunModels, cost: RunCost, subs: SubBatches) -> Needs:
    """What the run computes at a step on one rank, for the estimate of its memory. A rank that only scores counts what a trainer
    needs too, since the run needs both."""
    options, roles, batches = setup.options, setup.roles, subs.batches

    def largest_part(size: int) -> int:
        """The rows of the rank that has most lanes."""
        readers = roles.scoring or roles.training
        return -(-size * -(-batches.lanes // readers) // batches.lanes)

    b = options.optimization.batch_size
    return Needs(
        learner=models.learner,
        online=models.online,
        scoring=[model for model in (models.scorer, cost.made_in_run) if model and roles.scores],
        views=batches.views.values(),
        ahead=subs.views_ahead,
        sub_batch=largest_part(b) if subs.local else -(-b // roles.training),
        super_batch=largest_part(batches.size) if roles.scores else 0,
        micro_batch=options.optimization.micro_batch,
        accumulate=options.optimization.accumulate,
        grad_checkpointing=options.optimization.grad_checkpointing,
        score_precision=setup.score_precision,
        device=setup.device,
        joint=options.selection.joint,
        wait=options.selection.score_ahead,
        reference=models.moving,
        twin=models.twin,
    )
