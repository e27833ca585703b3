"""What the user chose for a run, checked before anything is opened."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal

from ..errors import SpecError
from ..ledger import BASELINE
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


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One training run. Exactly one of `budget_flops`, `examples` and `steps` ends it.

    `batch_size` is b, what the learner trains on at each step; the super-batch is b / (1 - `filter_ratio`).
    `filter_ratio` is the share dropped. `score_scale` multiplies the losses that make the score (None: 1 for
    cross-entropy and contrastive losses, 20 for dot products). `chunks` and `joint_loss` are of the policies that choose
    jointly (None: sigmoid where both models have a bias, else softmax). `score_size` and `score_patch_dropout` make the
    online model score more coarsely than it trains (None: as the score table was made). `lr` is the peak (None:
    the task's own). Every `selections_every` steps, the whole super-batch is written to `selections/`.
    """

    dataset: str
    learner: str
    policy: str | Policy = BASELINE
    online: str | None = None
    reference_scores: str | None = None
    reference: str | None = None
    budget_flops: float | None = None
    examples: int | None = None
    steps: int | None = None
    charge_reference: bool = False
    batch_size: int = 128
    filter_ratio: float = 0.5
    temperature: float = 1.0
    score_scale: float | None = None
    sampler: Sampler = "softmax"
    chunks: int = N_CHUNKS
    joint_loss: ContrastiveLoss | None = None
    score_size: int | None = None
    score_patch_dropout: float | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    online_lr: float | None = None
    weight_decay: float = 0.05
    warmup: float = 0.05
    label_smoothing: float = 0.0
    augment: str | None = None
    precision: Precision | None = None
    compile: bool | None = None
    seed: int = 0
    on_missing: OnMissing = "error"
    max_failures: float = 0.01
    micro_batch: int = 2048
    log_every: int = 20
    selections_every: int = 1
    checkpoint_every: int | None = None
    evaluate: bool = True
    cache_bytes: int = 2 << 30
    shuffle_bytes: int = 1 << 30
    out: str = "runs"
    name: str | None = None

    def __post_init__(self) -> None:
        policy = self.chosen_policy
        if sum(x is not None for x in (self.budget_flops, self.examples, self.steps)) != 1:
            raise SpecError(
                "give exactly one of --budget-flops, --examples and --steps (--train-num-samples is a way to say --examples)"
            )
        if policy.online == "model" and not self.online:
            raise SpecError(f"policy '{self.policy}' scores with an online model; give --online NAME")
        if policy.reference != "none" and not self.reference_scores:
            raise SpecError(
                f"policy '{self.policy}' needs a score table; run 'curate score-reference', then --reference-scores TABLE"
            )
        for option in ("batch_size", "micro_batch", "log_every", "selections_every", "chunks"):
            if getattr(self, option) < 1:
                raise SpecError(f"--{option.replace('_', '-')} is {getattr(self, option)}, expected at least 1")
        for option in ("examples", "steps", "checkpoint_every"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise SpecError(f"--{option.replace('_', '-')} is {value}, expected at least 1")
        bounds = {
            "lr": 1e9,
            "online_lr": 1e9,
            "weight_decay": 1e9,
            "warmup": 1,
            "label_smoothing": 1,
            "max_failures": 1,
        }
        for option, most in bounds.items():
            value = getattr(self, option)
            if value is not None and not 0 <= value <= most:
                expected = "0 or more" if most > 1 else "0 to 1"
                raise SpecError(f"--{option.replace('_', '-')} is {value:g}, expected {expected}")
        if self.augment not in (None, "none", "flip", "crop-flip"):
            raise SpecError(f"--augment is '{self.augment}', expected none, flip or crop-flip")
        if self.temperature <= 0:
            raise SpecError(
                f"--temperature is {self.temperature}, expected more than 0; for a hard choice --sampler topk"
            )
        if self.sampler not in ("softmax", "topk"):
            raise SpecError(f"--sampler is '{self.sampler}', expected softmax or topk")
        if self.joint_loss not in (None, "sigmoid", "softmax"):
            raise SpecError(f"--joint-loss is '{self.joint_loss}', expected sigmoid or softmax")
        check_precision(self.precision)
        _ = self.coarse
        if self.on_missing not in ("error", "score", "skip"):
            raise SpecError(f"--on-missing is '{self.on_missing}', expected error, score or skip")
        try:
            sub_batch_size(self.super_batch_size, self.filter_ratio if self.selects else 0.0)
        except ValueError as e:
            raise SpecError(f"--filter-ratio: {e}") from None

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

    @property
    def super_batch_size(self) -> int:
        if not self.selects:
            return self.batch_size
        try:
            return super_batch_size(self.batch_size, self.filter_ratio)
        except ValueError as e:
            raise SpecError(f"--filter-ratio: {e}") from None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(replace(self, policy=BASELINE)), "policy": str(self.policy)}

    def changed_since(self, before: Mapping[str, Any], free: Collection[str]) -> list[str]:
        """Lines such as `seed = 0, now 1` for options that a config.json has otherwise; those of `free` may differ.

        An option that it does not know, since it is older, had its default.
        """
        now = json.loads(json.dumps(self.to_dict()))
        known = {f.name: f.default for f in fields(self) if f.default is not MISSING} | dict(before)
        return [f"{k} = {known.get(k)}, now {now[k]}" for k in now if k not in free and now[k] != known.get(k)]
