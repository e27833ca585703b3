"""Options of how a run chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from ..errors import SpecError
from ..ledger import BASELINE
from ..options import Concern, Share, Values, check_choice, check_least, flag
from ..scoring.policies import NO_SCORER, POLICIES, REPLAY, Policy, find_policy
from ..scoring.settings import (
    N_CHUNKS,
    REWEIGHT,
    Coarse,
    ContrastiveLoss,
    KeepBy,
    OnMissing,
    Sampler,
    check_keep,
)

# A policy by its name, or your own.
Chosen = Annotated[str | Policy, Values({policy.name: policy.help for policy in POLICIES.values()})]


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Concern):
    """How the b of B examples are chosen, and what their scores come from."""

    policy: Chosen = BASELINE
    """Choose examples by this policy. Your own policy is module:NAME, imported from the working folder."""
    online: str | None = None
    """Train this small model along with the learner and score every super-batch with it."""
    reference_scores: str | None = None
    """Read the reference's losses from this score table, a folder or URL that score-reference wrote."""
    prior_scores: str | None = None
    """Read the losses of a second reference, trained on the bulk, from this score table, for a policy that subtracts both."""
    refresh_scores: str | None = None
    """Take the losses of a newer reference from this score table while it is being written: those of a shard from the epoch
    after it is complete there. Until then a shard has the losses of --reference-scores."""
    reference: str | None = None
    """Check that the score table comes from this model. Default: your own run or entry that made the table."""
    trust_table: bool = False
    """Build the model that the score table describes. Only for a table whose maker you trust."""
    reference_online: str | None = None
    """Train this small model during the run as its reference, on all examples of every super-batch, and use its present
    losses in place of a score table's (Online-ClassAct). No other run can use what it costs."""
    reference_every: int | None = None
    """Let the model of --reference-online take a step every N super-batches, on all of their examples. Default: the N with
    which these are about ten times --batch-size."""
    reference_lr: float | None = None
    """Use this peak of the learning rate for --reference-online. Default: twice the online model's."""
    replay: str | None = None
    """Train on what the run in this folder chose, and score nothing. That run must have recorded its choice at every step."""
    filter_ratio: float = 0.5
    """Drop this share of every super-batch, which holds batch-size / (1 - filter-ratio) examples."""
    keep: Share = 0.5
    """Keep this share of the data set, the best by the stored score, where the policy filters. The rest is never drawn."""
    keep_by: KeepBy = "all"
    """Keep the share of the whole data set, of each class, or of each shard."""
    temperature: float = 1.0
    """Divide scores by this before the softmax. Lower values choose more strictly."""
    score_scale: float | None = None
    """Multiply losses by this in the score. Default: 1; 20 where image-text pairs are scored one by one."""
    sampler: Sampler = "softmax"
    """Draw examples with probability softmax(score), take those with the highest scores (topk), or take all of them and let
    each loss weigh softmax(score) (reweight; with --filter-ratio 0)."""
    chunks: int = N_CHUNKS
    """Draw the sub-batch in this many chunks, where the policy chooses pairs jointly."""
    joint_loss: ContrastiveLoss | None = None
    """Score pairs jointly by this contrastive loss. Default: sigmoid if both models have a bias, else softmax."""
    score_size: int | None = None
    """Score images at this many pixels a side, below the model's own size. Default: as the score table was made."""
    score_patch_dropout: float | None = None
    """Score a vision transformer without this share of its patches. Default: as the score table was made."""
    score_ahead: int = 0
    """Score each super-batch this many steps before its turn, while the learner trains. The weights that score it are then
    as many steps old. With 0 they are the present ones, as in Algorithm 1."""
    on_missing: OnMissing = "error"
    """Stop with an error where the table lacks an example, score it during the run, or skip it."""

    def __post_init__(self) -> None:
        if self.replay is not None and str(self.policy) != BASELINE:
            raise SpecError(f"--replay {self.replay} trains on what that run chose; leave --policy {self.policy} out")
        if self.replay is not None and self.online:
            raise SpecError(f"--replay {self.replay} scores nothing; leave --online {self.online} out")
        if self.replay is not None and self.reference_online:
            raise SpecError(f"--replay {self.replay} scores nothing; leave --reference-online out")
        policy = self.chosen_policy
        if policy.online == "model" and not self.online:
            raise SpecError(f"policy '{self.policy}' scores with an online model; give --online NAME")
        if policy.reference != "none" and not (self.reference_scores or self.reference_online):
            raise SpecError(
                f"policy '{self.policy}' needs a score table; run 'curate score-reference', then --reference-scores TABLE"
            )
        if policy.prior and not self.prior_scores:
            raise SpecError(
                f"policy '{self.policy}' subtracts two score tables; give that of a model of the bulk: --prior-scores TABLE"
            )
        if self.sampler == REWEIGHT and policy.joint:
            raise SpecError(
                f"--sampler {REWEIGHT} needs a score of each example, and policy '{policy}' has none; leave it out"
            )
        if self.sampler == REWEIGHT and policy.prunes:
            raise SpecError(f"policy '{policy}' has weights of its own; leave --sampler {REWEIGHT} out")
        if self.sampler == REWEIGHT and self.filter_ratio:
            raise SpecError(f"--sampler {REWEIGHT} drops nothing; give --filter-ratio 0 too")
        self._check_moving(policy)
        self._check_refresh(policy)
        if not 0 <= self.filter_ratio < 1:
            raise SpecError(f"--filter-ratio is {self.filter_ratio:g}, expected the share dropped, from 0 to below 1")
        check_keep(self.keep, self.keep_by)
        if policy.filters and self.on_missing == "score":
            raise SpecError(
                f"policy '{self.policy}' keeps the best by stored scores, and --on-missing score has none; use skip"
            )
        check_least(self, 1, "chunks")
        if not 0 < self.temperature < math.inf:
            raise SpecError(
                f"--temperature is {self.temperature}, expected more than 0; for a hard choice --sampler topk"
            )
        if self.score_scale is not None and not 0 < self.score_scale < math.inf:
            raise SpecError(f"--score-scale is {self.score_scale:g}, expected a number above 0")
        check_least(self, 0, "score_ahead")
        if self.score_ahead and (policy.online in NO_SCORER or self.on_missing == "score"):
            what = (
                "--on-missing score"
                if self.on_missing == "score"
                else f"policy '{policy}', which scores nothing in the run"
            )
            raise SpecError(f"--score-ahead cannot be combined with {what}; leave it out")
        check_choice(self, "sampler")
        check_choice(self, "joint_loss")
        check_choice(self, "on_missing")
        _ = self.coarse

    def _check_moving(self, policy: Policy) -> None:
        """Raises SpecError where a reference that trains in the run does not go with the rest, or is missing."""
        for name in ("reference_every", "reference_lr"):
            if getattr(self, name) is not None and not self.reference_online:
                raise SpecError(
                    f"{flag(name)} is for a reference that trains in the run; give --reference-online MODEL"
                )
        check_least(self, 1, "reference_every")
        if self.reference_lr is not None and not 0 <= self.reference_lr < math.inf:
            raise SpecError(f"--reference-lr is {self.reference_lr:g}, expected 0 or more")
        if not self.reference_online:
            return
        for name in ("reference_scores", "reference"):
            if getattr(self, name):
                raise SpecError(
                    f"{flag(name)} and --reference-online are both given; the reference's losses come from a stored table, or "
                    "from a model that trains in the run: drop one"
                )
        if policy.filters or policy.joint:
            what = "filters the data set before the run" if policy.filters else "compares stored embeddings"
            raise SpecError(
                f"policy '{policy}' {what}, which --reference-online cannot give; give --reference-scores TABLE instead"
            )

    def _check_refresh(self, policy: Policy) -> None:
        """Raises SpecError where the run reads no losses that could be renewed. A replay has those of its run."""
        if self.refresh_scores is None or self.replay is not None:
            return
        if policy.reference != "loss" or policy.joint or policy.filters or self.reference_online:
            what = "--reference-online" if self.reference_online else f"policy '{policy}'"
            raise SpecError(
                f"--refresh-scores renews a table's losses while a run chooses by them, which {what} does not; leave it out"
            )
        if self.on_missing != "error":
            raise SpecError(
                f"--refresh-scores cannot be combined with --on-missing {self.on_missing}; leave one of them out"
            )

    @property
    def chosen_policy(self) -> Policy:
        return find_policy(self.policy) if self.replay is None else REPLAY

    @property
    def selects(self) -> bool:
        return self.chosen_policy.selects

    @property
    def weighs(self) -> bool:
        """Whether examples have weights in the training loss."""
        return (self.sampler == REWEIGHT and self.selects) or self.chosen_policy.prunes

    @property
    def joint(self) -> bool:
        return self.chosen_policy.joint

    @property
    def coarse(self) -> Coarse:
        return Coarse(size=self.score_size, patch_dropout=self.score_patch_dropout or 0.0)
