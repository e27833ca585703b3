"""What the user chose for a run, nested by concern and checked before anything is opened.

The string below a field is its help text; the command line is made from these fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal

from ..errors import SpecError, nearest, without_secrets
from ..options import (
    Concern,
    Flops,
    Options,
    Text,
    check_choice,
    check_least,
    check_local,
    flag,
    options_of,
)
from ..scoring.settings import Precision, check_precision, super_batch_size, usual_reference_every
from .asynchronous import AsynchronousOptions
from .data_options import DataOptions
from .selection_options import SelectionOptions
from .sharing import SharingOptions

Augment = Literal["none", "flip", "crop-flip"]
# Options that had another name in the config.json of an earlier version.
RENAMED = {"shuffle_bytes": "host_bytes"}
MOVING_MIXTURE = "--reference-online makes the losses of what is mixed in too; leave --mix-scores out"


# Of a file or folder, on most systems.
LONGEST_NAME = 255


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Concern):
    """When the run ends: exactly one of `budget_flops`, `examples` and `steps` says it."""

    budget_flops: Flops | None = None
    """Stop before more than this many FLOPs are spent, such as 2e13, 20TF or 1EF."""
    examples: int | None = None
    """Stop when the learner has trained on this many examples, counting repeats."""
    steps: int | None = None
    """Stop after this many steps."""
    charge_reference: bool = False
    """Let the budget also pay for the reference: its training and its scores."""

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.budget_flops, self.examples, self.steps)) != 1:
            raise SpecError(
                "give exactly one of --budget-flops, --examples and --steps (--train-num-samples is a way to say --examples)"
            )
        if self.charge_reference and self.budget_flops is None:
            raise SpecError("--charge-reference is about --budget-flops; give that, or leave it out")
        check_least(self, 1, "examples", "steps")


@dataclass(frozen=True, kw_only=True)
class OptimizationOptions(Concern):
    """How the models are trained on what was chosen."""

    batch_size: int = 128
    """Train on this many examples at each step."""
    optimizer: str = "adamw"
    """Train with this optimizer. Any of timm's works."""
    lr: float | None = None
    """Raise the learning rate to this peak, from which it falls to zero. Default: 0.002; 0.0005 for image-text."""
    online_lr: float | None = None
    """Use this peak for the online model. Default: the learner's."""
    weight_decay: float = 0.05
    """Decay weights by this much. Biases and norms do not decay."""
    warmup: float = 0.05
    """Raise the learning rate linearly over this share of the steps."""
    cooldown: float | None = None
    """Hold the learning rate, and lower it linearly to zero over this last share of the steps. Default: a cosine."""
    layer_decay: float | None = None
    """Give each layer of the learner this share of the learning rate of the layer above it. Default: all the same."""
    beta1: float | None = None
    """Average gradients over steps with this decay, in both models' optimizers. Default: the optimizer's own."""
    beta2: float | None = None
    """Average squared gradients over steps with this decay, in both models' optimizers. Default: the optimizer's own."""
    eps: float | None = None
    """Add this to the denominator of an update, in both models' optimizers. Default: the optimizer's own."""
    clip_grad: float | None = None
    """Scale each model's gradients down to this norm where theirs is larger. Default: never."""
    ema: float | None = None
    """Keep a moving average of the learner's weights with this decay, such as 0.9999. It is what is evaluated and
    written as the learner; the weights of the last step are written beside it. Scores come from the weights that train."""
    ema_warmup: bool = False
    """Let the decay of the average grow from 0 to --ema over the steps."""
    label_smoothing: float = 0.0
    """Smooth labels by this much in the training loss, never in scores."""
    gce: float | None = None
    """Train both models on the generalised cross-entropy (1 - p^q) / q with this q, such as 0.7: wrong labels count for less.
    Default: cross-entropy. Scores are cross-entropy in any case."""
    distill: float = 0.0
    """Give the stored probabilities of the reference this weight in the learner's training loss, and the labels the rest.
    Needs a score table that was made with --logits. Works with every policy, uniform too."""
    distill_temperature: float = 1.0
    """Divide both models' logits by this for --distill. Higher values make the reference's probabilities more even."""
    augment: Augment | None = None
    """Crop and flip training images at random. Default: crop-flip; none for image-text."""
    precision: Precision | None = None
    """Train in this number format. Default: bf16 if the hardware gains by it, else fp32. With bf16, a GPU multiplies in
    TF32 what stays in float32."""
    score_precision: Precision | None = None
    """Score super-batches in this number format. Default: as --precision, whatever the score table was made in."""
    compile: bool | None = None
    """Compile the models with torch.compile. Default: only on a GPU."""
    accumulate: int = 1
    """Train both models on the batch in this many parts, one after another, to save memory. Gradients are those of the
    whole batch: a contrastive loss embeds all parts first and computes each a second time. BatchNorm sees the parts."""
    grad_checkpointing: bool = False
    """Keep less of the learner's forward pass in memory, and compute the rest again in its backward pass."""
    micro_batch: int = 2048
    """Score this many examples in one forward pass. Fewer need less memory."""
    deterministic: bool = False
    """Compute on a GPU by kernels alone that give the same bits every time, some of them slower: a resumed run then ends
    with the same weights, bit for bit. A CPU's always do."""

    @property
    def stepping(self) -> dict[str, Any]:
        """What both models' trainees are given alike."""
        names = (
            "optimizer",
            "weight_decay",
            "beta1",
            "beta2",
            "eps",
            "clip_grad",
            "label_smoothing",
            "gce",
            "accumulate",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def of_the_learner(self) -> dict[str, Any]:
        """What the learner's trainee alone is given."""
        names = ("layer_decay", "grad_checkpointing", "ema", "ema_warmup", "distill", "distill_temperature")
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        check_least(self, 1, "batch_size", "micro_batch", "accumulate")
        if self.accumulate > self.batch_size:
            raise SpecError(f"--accumulate is {self.accumulate}, expected at most --batch-size, {self.batch_size}")
        bounds = {
            "lr": 1e9,
            "online_lr": 1e9,
            "weight_decay": 1e9,
            "warmup": 1,
            "cooldown": 1,
            "label_smoothing": 1,
            "layer_decay": 1,
            "distill": 1,
        }
        for option, most in bounds.items():
            value = getattr(self, option)
            if value is not None and not 0 <= value <= most:
                expected = "0 or more" if most > 1 else "0 to 1"
                raise SpecError(f"{flag(option)} is {value:g}, expected {expected}")
        if self.warmup + (self.cooldown or 0) > 1:
            raise SpecError(
                f"--warmup is {self.warmup:g} and --cooldown {self.cooldown:g}, expected shares of the steps of 1 together"
                " at most"
            )
        for option in ("beta1", "beta2", "ema"):
            value = getattr(self, option)
            if value is not None and not 0 <= value < 1:
                raise SpecError(f"{flag(option)} is {value:g}, expected from 0 to below 1")
        for option in ("eps", "clip_grad", "distill_temperature"):
            value = getattr(self, option)
            if value is not None and not 0 < value < math.inf:
                raise SpecError(f"{flag(option)} is {value:g}, expected a number above 0")
        if self.gce is not None and not 0 < self.gce <= 1:
            raise SpecError(f"--gce is {self.gce:g}, expected a q above 0 and up to 1, such as 0.7")
        if self.gce is not None and self.label_smoothing:
            raise SpecError("--gce and --label-smoothing are two ways to trust labels less; leave one of them out")
        if self.distill_temperature != 1 and not self.distill:
            raise SpecError("--distill-temperature is for the reference's probabilities; give --distill SHARE too")
        if self.ema_warmup and self.ema is None:
            raise SpecError("--ema-warmup is for a moving average; give --ema DECAY too")
        check_choice(self, "augment")
        check_precision(self.precision)
        check_precision(self.score_precision, "score_precision")


TRACKERS = ("tensorboard", "wandb", "trackio")


def parse_trackers(text: str, option: str) -> tuple[str, ...]:
    """Names from `tensorboard,wandb`; none of an empty text. Raises SpecError."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in TRACKERS:
            raise SpecError(
                f"{option} is '{text}', expected {', '.join(TRACKERS)}, or several{nearest(name, TRACKERS)}"
            )
    return names


@dataclass(frozen=True, kw_only=True)
class RecordOptions(Concern):
    """What the run writes, where, and how often."""

    out: str = "runs"
    """Write the run's folder under this folder."""
    name: str | None = None
    """Name the run's folder. Default: DATASET-POLICY-LEARNER-seedSEED."""
    log_every: int = 20
    """Write a line of metrics.jsonl every N steps."""
    selections_every: int | None = None
    """Record a super-batch and what was chosen of it every N steps. Default: 1, or what keeps the records below 1 GB."""
    checkpoint_every: int | None = None
    """Write a checkpoint every N steps. Default: every 30 seconds."""
    keep_every: int | None = None
    """Keep the learner's weights every N steps, as checkpoints/learner-STEP.safetensors."""
    evaluate: bool = True
    """Measure the learner on the test split when the run ends."""
    evaluate_every: int | None = None
    """Measure it every N steps too, and keep the best weights as checkpoints/learner-best.safetensors. They are chosen on the
    test split, so their quality there is higher than it would be on other data."""
    report_to: Annotated[tuple[str, ...], Text(parse_trackers, ",".join, "<names>")] = ()
    """Send losses, FLOPs by ledger line and regime, seconds, scores and images to these trackers as well: tensorboard, wandb
    or trackio, or several, such as tensorboard,wandb. Each is a package to install. A resumed run continues
    the same run there."""

    def __post_init__(self) -> None:
        check_least(self, 1, "log_every", "selections_every", "checkpoint_every", "keep_every", "evaluate_every")
        if self.evaluate_every is not None and not self.evaluate:
            raise SpecError("--evaluate-every and --no-evaluate contradict each other; leave one out")
        check_local(self, "out")
        parse_trackers(",".join(self.report_to), "--report-to")
        if self.name is not None and (not self.name.strip(" .") or "/" in self.name):
            raise SpecError(f"--name is '{self.name}', expected the name of one folder; --out says where it is")
        if self.name is not None and (not self.name.isprintable() or len(self.name.encode()) > LONGEST_NAME):
            raise SpecError(
                f"--name is {self.name[:60]!r}, expected at most {LONGEST_NAME} bytes and no character that cannot be printed"
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """One training run. `RunOptions.of(dataset=..., learner=..., steps=...)` takes all options flat."""

    dataset: str
    """Train on this data set: a name in curate.toml, or shards such as 'path/{000..099}.tar'."""
    learner: str
    """Train this model: a name in curate.toml, a timm or open_clip name, or a run's folder."""
    seed: int = 0
    """Draw weights, order, selection and augmentation from this seed."""
    budget: BudgetOptions
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    data: DataOptions = field(default_factory=DataOptions)
    records: RecordOptions = field(default_factory=RecordOptions)
    sharing: SharingOptions = field(default_factory=SharingOptions)
    asynchronous: AsynchronousOptions = field(default_factory=AsynchronousOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise SpecError(f"--seed is {self.seed}, expected 0 or more, below 2^63")
        asked = self.selection
        self.sharing.refuse_local(asked.chosen_policy, asked.replay, asked.score_ahead, asked.weighs)
        if asked.reference_online and asked.chosen_policy.reference == "none":
            raise SpecError(f"policy '{asked.policy}' needs no reference; leave --reference-online out")
        if self.data.follow and asked.chosen_policy.filters:
            raise SpecError(f"policy '{asked.policy}' filters the data set before the run; leave --follow out")
        if self.data.follow and asked.on_missing != "error":
            raise SpecError(f"--follow takes in a shard once it is scored; leave --on-missing {asked.on_missing} out")
        if self.data.follow and self.budget.charge_reference:
            raise SpecError("--charge-reference pays before step 1, and with --follow more is scored; leave it out")
        if self.asynchronous.actors and self.data.max_bad_shards:
            raise SpecError("--actors end the run at a shard that cannot be read; leave --max-bad-shards out")
        b, distill = self.optimization.batch_size, self.optimization.distill
        self.asynchronous.refuse(asked, distill, self.data.follow, b, self.super_batch_size)
        self.asynchronous.refuse_scorers(asked, self.sharing, distill, b, self.super_batch_size)
        self._refuse_probe()
        self._refuse_mixture()
        if not self.optimization.distill:
            return
        if not self.selection.reference_scores:
            raise SpecError("--distill learns from stored logits; give --reference-scores TABLE, made with --logits")
        if self.selection.on_missing == "score":
            raise SpecError("--distill reads stored logits, and --on-missing score stores none; use skip")

    def _refuse_probe(self) -> None:
        """Raises SpecError where the options cannot be combined with a policy that watches whether choosing pays."""
        asked = self.selection
        if not asked.chosen_policy.probes:
            return
        if self.budget.budget_flops is None:
            raise SpecError(
                f"policy '{asked.policy}' shares out a budget; give --budget-flops, not --steps or --examples"
            )
        tried = {"--score-ahead": asked.score_ahead, "--actors": self.asynchronous.actors}
        more = {"--reference-online": asked.reference_online, "--scorers": self.asynchronous.scorers}
        for option, value in {**tried, **more}.items():
            if value:
                raise SpecError(f"policy '{asked.policy}' was not tried with {option}; leave it out")

    def _refuse_mixture(self) -> None:
        """Raises SpecError where the options cannot be combined with a mixture."""
        mixture = self.data.mixture
        if mixture is None:
            return
        untried = {
            "--follow": self.data.follow,
            "--actors": self.asynchronous.actors,
            "--scorers": self.asynchronous.scorers,
            "--selection local": self.sharing.local,
        }
        for option, value in untried.items():
            if value:
                raise SpecError(f"--mix was not tried with {option}; leave one of them out")
        policy = self.selection.chosen_policy
        moving = self.selection.reference_online is not None
        if moving and self.data.mix_scores is not None:
            raise SpecError(MOVING_MIXTURE)
        joins = (policy.reference != "none" and policy.selects and not moving) or self.optimization.distill > 0
        if joins and self.data.mix_scores is None:
            what = "--distill" if self.optimization.distill else f"policy '{policy}'"
            raise SpecError(
                f"{what} needs the reference's losses of '{mixture[0]}' too; run 'curate score-reference' on that data "
                "set, then --mix-scores TABLE"
            )

    @property
    def uses_table(self) -> bool:
        """Whether the run reads a score table: its policy, or its loss."""
        return self.selection.chosen_policy.reference != "none" or self.optimization.distill > 0

    @property
    def super_batch_size(self) -> int:
        if not self.selection.selects:
            return self.optimization.batch_size
        return super_batch_size(self.optimization.batch_size, self.selection.filter_ratio)

    @property
    def reference_every(self) -> int:
        """How many super-batches a reference that trains in the run learns from at a step."""
        every = self.selection.reference_every
        return usual_reference_every(self.optimization.batch_size, self.super_batch_size) if every is None else every

    @property
    def scored_per_step(self) -> int:
        """How many examples are scored for each step: the super-batch, but where actors score another share."""
        return self.asynchronous.scored_per_step(self.optimization.batch_size, self.super_batch_size)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "policy": str(self.selection.policy)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunOptions:
        """Of a config.json, also one of an earlier version."""
        return cls.of(**_renamed(values))

    def changed_since(self, before: Mapping[str, Any], free: Collection[str]) -> list[str]:
        """Lines such as `seed = 0, now 1` for options that a config.json has otherwise; those of `free` may differ.

        An option that it does not know, since it is older, had its default. Of URLs it holds no secrets, which may change.
        """
        defaults = {o.name: o.default for o in options_of(type(self)).values() if o.default is not MISSING}
        # As JSON has them, such as a tuple as a list.
        written, plain = json.loads(json.dumps([self.to_dict(), {**defaults, "policy": str(defaults["policy"])}]))
        now = {name: without_secrets(v) if isinstance(v, str) else v for name, v in written.items()}
        known = plain | _renamed(before)
        return [f"{k} = {known.get(k)}, now {now[k]}" for k in now if k not in free and now[k] != known.get(k)]


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in config.items()}
