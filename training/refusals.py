"""What a choice cannot be made of, refused before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ModelError, SpecError
from ..scoring.models import Model
from ..scoring.policies import Policy
from .batch import SuperBatch
from .superbatch import SuperBatches


def refuse_unscored(policy: Policy, batches: SuperBatches) -> None:
    """Raises SpecError where a policy would choose by losses that a data set which is mixed in lacks."""
    if batches.mix is None or batches.mix.scores is not None or batches.table is None:
        return
    if policy.selects and policy.reference != "none":
        raise SpecError(f"policy '{policy}' needs the losses of what is mixed in; give curate.Mix(..., scores=TABLE)")


def refuse_misfits(models: Iterable[Model], batch: SuperBatch) -> None:
    """Raises ModelError for the first example for whose label one of the models has no output."""
    if isinstance(batch.targets, list) or not len(batch):
        return
    largest = int(batch.targets.argmax())
    for model in models:
        why = model.task.misfit(model, int(batch.targets[largest]))
        if why:
            raise ModelError(f"shard '{batch.shards[largest]}', key '{batch.keys[largest]}': {why}")
