"""What the user chose for a run, nested by concern and checked before anything is opened.

The string below a field is its help text; the command line is made from these fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal, get_args

from ..errors import SpecError
from ..ledger import BASELINE
from ..options import Options, check_choice, check_least, flag
from ..scoring.policies import Policy, find_policy
from ..scoring.settings import (
    N_CHUNKS,
    Coarse,
    ContrastiveLoss,
    OnMissing,
    Precision,
    Sampler,
    check_precision,
    sub_batch_size,
    super_batch_size,
)

Augment = Literal["none", "flip", "crop-flip"]
# Options that had another name in the config.json of an earlier version.
RENAMED = {"shuffle_bytes": "host_bytes"}


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """When the run ends: exactly one of `budget_flops`, `examples` and `steps` says it."""

    budget_flops: float | None = None
    """Stop when this many FLOPs are spent: 2e13, 20TF, 1EF."""
    examples: int | None = None
    """Stop when the learner has trained on this many examples."""
    steps: int | None = None
    """Stop after this many steps."""
    charge_reference: bool = False
    """Take what the reference cost (its training and its scores) off the budget."""

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.budget_flops, self.examples, self.steps)) != 1:
            raise SpecError(
                "give exactly one of --budget-flops, --examples and --steps (--train-num-samples is a way to say --examples)"
            )
        check_least(self, 1, "examples", "steps")


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """How the b of B examples are chosen, and what their scores come from."""

    policy: str | Policy = BASELINE
    """Choose examples by this policy. A policy of your own is module:NAME, imported from the working folder."""
    online: str | None = None
    """Train this small model beside the learner, and score every super-batch with it."""
    reference_scores: str | None = None
    """Read the reference's losses from this score table (a folder or URL that score-reference wrote)."""
    reference: str | None = None
    """Refuse a score table that comes from any other model than this one."""
    filter_ratio: float = 0.5
    """Drop this share of every super-batch: it holds batch-size / (1 - filter-ratio) examples."""
    temperature: float = 1.0
    """Divide scores by this before the softmax; lower values choose more strictly."""
    score_scale: float | None = None
    """Multiply losses by this in the score. Default: 1, and 20 where image-text pairs are scored one by one."""
    sampler: Sampler = "softmax"
    """Draw with probability softmax(score), or take the highest scores (topk)."""
    chunks: int = N_CHUNKS
    """Draw the sub-batch in this many chunks where the policy chooses pairs jointly (jest, acid)."""
    joint_loss: ContrastiveLoss | None = None
    """Score pairs jointly by this contrastive loss. Default: sigmoid where both models have a bias, else softmax."""
    score_size: int | None = None
    """Score images at this many pixels a side, below the model's own size. Default: as the score table was made."""
    score_patch_dropout: float | None = None
    """Leave this share of a vision transformer's patches out when scoring. Default: as the score table was made."""
    on_missing: OnMissing = "error"
    """Where the table lacks an example: stop with an error, score it in the run, or skip it."""

    def __post_init__(self) -> None:
        policy = self.chosen_policy
        if policy.online == "model" and not self.online:
            raise SpecError(f"policy '{self.policy}' scores with an online model; give --online NAME")
        if policy.reference != "none" and not self.reference_scores:
            raise SpecError(
                f"policy '{self.policy}' needs a score table; run 'curate score-reference', then --reference-scores TABLE"
            )
        check_least(self, 1, "chunks")
        if not self.temperature > 0:
            raise SpecError(
                f"--temperature is {self.temperature}, expected more than 0; for a hard choice --sampler topk"
            )
        if self.score_scale is not None and not 0 < self.score_scale < math.inf:
            raise SpecError(f"--score-scale is {self.score_scale:g}, expected a number above 0")
        check_choice(self, "sampler", get_args(Sampler))
        check_choice(self, "joint_loss", get_args(ContrastiveLoss))
        check_choice(self, "on_missing", get_args(OnMissing))
        _ = self.coarse

    @property
    def chosen_policy(self) -> Policy:
        return find_policy(self.policy)

    @property
    def selects(self) -> bool:
        return self.chosen_policy.selects

    @property
    def joint(self) -> bool:
        return self.chosen_policy.joint

    @property
    def coarse(self) -> Coarse:
        return Coarse(size=self.score_size, patch_dropout=self.score_patch_dropout or 0.0)


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions:
    """How the models are trained on what was chosen."""

    batch_size: int = 128
    """Train on this many examples at each step (b of the paper)."""
    optimizer: str = "adamw"
    """Train with this optimizer, any of timm's."""
    lr: float | None = None
    """Peak of the learning rate, which ends at zero. Default: 2e-3 for classification, 5e-4 for image-text."""
    online_lr: float | None = None
    """Peak of the online model's learning rate. Default: the learner's."""
    weight_decay: float = 0.05
    """Weight decay. Biases and norms have none."""
    warmup: float = 0.05
    """Raise the learning rate linearly over this share of the steps."""
    label_smoothing: float = 0.0
    """Smooth labels by this much in the training loss, never in scores."""
    augment: Augment | None = None
    """Change training images at random. Default: crop-flip for classification, none for image-text."""
    precision: Precision | None = None
    """Number format of the forward passes. Default: bf16 where the hardware is faster with it, else fp32."""
    compile: bool | None = None
    """Compile the models with torch.compile. Default: on GPUs only."""
    micro_batch: int = 2048
    """Score this many examples in one forward pass; fewer need less memory."""

    def __post_init__(self) -> None:
        check_least(self, 1, "batch_size", "micro_batch")
        bounds = {"lr": 1e9, "online_lr": 1e9, "weight_decay": 1e9, "warmup": 1, "label_smoothing": 1}
        for option, most in bounds.items():
            value = getattr(self, option)
            if value is not None and not 0 <= value <= most:
                expected = "0 or more" if most > 1 else "0 to 1"
                raise SpecError(f"{flag(option)} is {value:g}, expected {expected}")
        check_choice(self, "augment", get_args(Augment))
        check_precision(self.precision)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How the data set is read."""

    max_failures: float = 0.01
    """End the run when more than this share of the examples is bad."""
    lanes: int | None = None
    """Read this many shards at the same time; every super-batch draws from all of them. Default: 32, or all shards."""
    host_bytes: int = 1 << 30
    """Hold this many bytes of shards in memory, to draw from them in random order."""
    cache_bytes: int = 2 << 30
    """Keep decoded images in memory up to this many bytes, so that a small data set is decoded once."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_failures <= 1:
            raise SpecError(f"--max-failures is {self.max_failures:g}, expected 0 to 1")
        check_least(self, 1, "lanes", "host_bytes")
        check_least(self, 0, "cache_bytes")


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """What the run writes, where, and how often."""

    out: str = "runs"
    """Write the run's folder under this one."""
    name: str | None = None
    """Name of the run's folder. Default: dataset-policy-learner-seed0."""
    log_every: int = 20
    """Write a line of metrics.jsonl every so many steps."""
    selections_every: int = 1
    """Write the whole super-batch, with what was chosen of it, every so many steps."""
    checkpoint_every: int | None = None
    """Write a checkpoint every so many steps. Default: every 30 seconds."""
    evaluate: bool = True
    """Measure the learner on the test split at the end."""

    def __post_init__(self) -> None:
        check_least(self, 1, "log_every", "selections_every", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """One training run. `RunOptions.of(dataset=..., learner=..., steps=...)` takes all options flat."""

    dataset: str
    """Train on this data set: a name in curate.toml, or shards such as 'path/{000..099}.tar'."""
    learner: str
    """Train this model: a name in curate.toml, of timm or of open_clip, or a run's folder."""
    seed: int = 0
    """Seed of weights, order, selection and augmentation."""
    budget: BudgetOptions
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    data: DataOptions = field(default_factory=DataOptions)
    records: RecordOptions = field(default_factory=RecordOptions)

    def __post_init__(self) -> None:
        try:
            sub_batch_size(self.super_batch_size, self.selection.filter_ratio if self.selection.selects else 0.0)
        except ValueError as e:
            raise SpecError(f"--filter-ratio: {e}") from None

    @property
    def super_batch_size(self) -> int:
        if not self.selection.selects:
            return self.optimization.batch_size
        return super_batch_size(self.optimization.batch_size, self.selection.filter_ratio)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "policy": str(self.selection.policy)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunOptions:
        """Of a config.json, also one of an earlier version."""
        return cls.of(**_renamed(values))

    def changed_since(self, before: Mapping[str, Any], free: Collection[str]) -> list[str]:
        """Lines such as `seed = 0, now 1` for options that a config.json has otherwise; those of `free` may differ.

        An option that it does not know, since it is older, had its default.
        """
        now = json.loads(json.dumps(self.to_dict()))
        known = {o.name: o.default for o in self.options().values() if o.default is not MISSING} | _renamed(before)
        return [f"{k} = {known.get(k)}, now {now[k]}" for k in now if k not in free and now[k] != known.get(k)]


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in config.items()}
