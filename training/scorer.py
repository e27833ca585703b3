"""Step 2 of Algorithm 1: what the models say of a super-batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..ledger import Ledger
from ..scoring.forward import score_batch
from ..scoring.losses import Losses, Pairs
from ..scoring.models import Model, Scored
from ..scoring.policies import Policy
from ..scoring.settings import Precision
from .batch import SuperBatch, numbers_of
from .score_ahead import Copy

ONLINE, REFERENCE = "scorer", "reference scorer"
"""The names under which super-batches hold what these two models see."""


class BudgetSpentError(Exception):
    """The budget does not pay for the step whose super-batch was drawn last. It says why, and what to do."""


@dataclass(frozen=True)
class RunScorer:
    """The models that score in a run.

    `model` and `forward` are the online model's, or the learner's where it scores itself, as coarse as it scores; None
    where the policy asks neither. `reference` makes the losses that the table lacks; each is `reference_cost` FLOPs in
    the ledger. None where it may not. Where `budget` is given, BudgetSpentError is raised before a super-batch is scored
    whose missing losses, with the `step_flops` of a step, would spend more: by `charge`, which is called first. Where there
    is no table, `reference` trains in the run and makes all losses, with `reference_forward`; a step's cost has them, and
    `more_views` has the view that it trains on. All ranks enter `whole()` before they score, where the model is in shards.
    """

    policy: Policy
    model: Model | None
    forward: Any
    reference: Model | None
    reference_cost: float
    ledger: Ledger
    precision: Precision
    micro_batch: int
    reference_scale: float = 1.0
    reference_bias: float = 0.0
    budget: float | None = None
    step_flops: float = 0.0
    whole: Callable[[], AbstractContextManager[None]] = nullcontext
    reference_forward: Any = None
    more_views: tuple[str, ...] = ()

    @property
    def views(self) -> tuple[str, ...]:
        """The views that the choice needs of all examples."""
        asked = {ONLINE: self.model, REFERENCE: self.reference}
        return (*(name for name, model in asked.items() if model is not None), *self.more_views)

    def charge(self, batch: SuperBatch) -> None:
        """Add to the ledger what making the missing losses will cost. A collective where ranks divide the super-batch.

        Raises BudgetSpentError, on all ranks.
        """
        if self.reference is None or batch.reference_loss is None:
            return
        missing = torch.isnan(batch.reference_loss).sum()
        if batch.division is not None:
            missing = batch.division.group.sum(missing)
        flops = self.reference_cost * int(missing)
        if flops and self.budget is not None and self.ledger.spent + flops + self.step_flops > self.budget:
            raise BudgetSpentError(
                "the budget is smaller than one step with the losses that the score table lacks; raise it, or run "
                "score-reference first"
            )
        self.ledger.add_scored_in_run(flops)

    def snapshot(self) -> RunScorer:
        """A scorer with the weights of the models that train as they are now; the next call brings it up to date."""
        copies, scorer = self.copied
        for copied in copies:
            copied.update()
        return scorer

    @cached_property
    def copied(self) -> tuple[list[Copy], RunScorer]:
        """Copies of the models that train, and the scorer that scores by these."""
        copies: list[Copy] = []

        def copy_of(model: Model | None, forward: Any) -> tuple[Model | None, Any]:
            if model is None:
                return None, None
            copies.append(Copy(model.module))
            made, compiled = copy(model), forward is not model.module
            made.module = copies[-1].module
            return made, torch.compile(made.module) if compiled else made.module

        model, forward = copy_of(self.model, self.forward)
        reference, reference_forward = copy_of(self.reference, self.reference_forward)
        made = replace(self, model=model, forward=forward, reference=reference, reference_forward=reference_forward)
        return copies, made

    def score(self, batch: SuperBatch) -> Losses:
        """The online model's losses or embeddings of a super-batch on its device, and the stored ones of the reference."""
        reference_loss_B, reference_pairs = batch.reference_loss, batch.reference_pairs
        if self.reference is not None and reference_loss_B is not None:
            missing = torch.isnan(reference_loss_B).nonzero().squeeze(1)
            if len(missing):
                reference_loss_B, reference_pairs = self._made(batch, missing)
        elif self.reference is not None:
            pixels, targets = batch.views[REFERENCE], batch.model_targets(REFERENCE)
            reference_loss_B = self._score(self.reference, pixels, targets, self.reference_forward).loss
        online = None
        if self.model is not None:
            online = self._score(self.model, batch.views[ONLINE], batch.model_targets(ONLINE), self.forward)
        if not self.policy.joint:
            uses_reference = self.policy.reference != "none"
            return Losses(online.loss if online else None, reference_loss_B if uses_reference else None)
        assert reference_pairs is not None
        group_B = caption_groups(batch).to(reference_pairs[0].device)
        return Losses(
            online.loss if online else None,
            reference_loss_B,
            _pairs(self.model, online, group_B) if self.model is not None and online is not None else None,
            Pairs(*reference_pairs, self.reference_scale, self.reference_bias, group_B),
        )

    def _made(
        self, batch: SuperBatch, missing: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """The reference's losses and embeddings with those made that were missing."""
        assert self.reference is not None and batch.reference_loss is not None
        pixels, targets = batch.views[REFERENCE][missing], batch.model_targets(REFERENCE)[missing]
        scored = self._score(self.reference, pixels, targets)
        loss_B = batch.reference_loss.index_copy(0, missing, scored.loss)
        if batch.reference_pairs is None:
            return loss_B, None
        assert scored.image_embedding is not None and scored.text_embedding is not None
        image_BD, text_BD = (
            stored.index_copy(0, missing, new.half())
            for stored, new in zip(batch.reference_pairs, (scored.image_embedding, scored.text_embedding), strict=True)
        )
        return loss_B, (image_BD, text_BD)

    def _score(self, model: Model, pixels: torch.Tensor, targets: torch.Tensor, forward: Any = None) -> Scored:
        return score_batch(
            model, pixels, targets, precision=self.precision, micro_batch=self.micro_batch, forward=forward
        )


def _pairs(model: Model, scored: Scored, group_B: torch.Tensor) -> Pairs:
    assert scored.image_embedding is not None and scored.text_embedding is not None
    bias = getattr(model.module, "logit_bias", None)
    scale = float(model.module.logit_scale.detach().exp())  # type: ignore[operator, union-attr]
    return Pairs(
        scored.image_embedding, scored.text_embedding, scale, 0.0 if bias is None else float(bias.detach()), group_B
    )


def caption_groups(batch: SuperBatch) -> torch.Tensor:
    """int64 [B]: the same number for identical captions, on every rank. They are not each other's negatives."""
    assert isinstance(batch.targets, list)
    return numbers_of(caption.encode() for caption in batch.targets)
