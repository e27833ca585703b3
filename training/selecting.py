"""Steps 2 and 3 of Algorithm 1: what the models say of a super-batch, and which b of its B are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..datasets.decoding import Geometry
from ..errors import SpecError, TableError
from ..scoring.coarse import coarsened
from ..scoring.flops import forward_flops
from ..scoring.forward import embedding_width, score_batch
from ..scoring.joint import selection_flops
from ..scoring.losses import Losses, Pairs
from ..scoring.models import Model, Scored
from ..scoring.selector import Selector
from ..scoring.settings import Coarse, ContrastiveLoss, Precision
from ..scoring.tables.lookup import ScoreTable
from ..units import format_flops
from .options import RunOptions
from .superbatch import SuperBatch
from .trainee import Trainee


class Inputs:
    """A super-batch on the device: every geometry and every model's targets are moved (and captions tokenized) once."""

    def __init__(self, batch: SuperBatch, device: torch.device) -> None:
        self._batch, self._device = batch, device
        self._pixels: dict[Geometry, torch.Tensor] = {}
        self._targets: dict[int, torch.Tensor] = {}

    def of(self, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels uint8 [B, H, W, 3] and targets of all B for this model."""
        if model.geometry not in self._pixels:
            self._pixels[model.geometry] = to_device(self._batch.pixels[model.geometry], self._device)
        if id(model.tokenizer) not in self._targets:  # classifiers have none, and all share the labels
            self._targets[id(model.tokenizer)] = to_device(self._batch.targets(model), self._device)
        return self._pixels[model.geometry], self._targets[id(model.tokenizer)]


@dataclass(frozen=True)
class Scorer:
    """How a run scores. `model` and `forward` are the online model's, or the learner's where it scores itself, as coarse
    as it scores; None where the policy asks neither. `reference` is there only where missing scores are to be made in the run."""

    options: RunOptions
    model: Model | None
    forward: Any
    reference: Model | None
    precision: Precision
    scale: float
    joint_loss: ContrastiveLoss
    reference_scale: float
    reference_bias: float


def make_scorer(
    options: RunOptions,
    learner: Trainee,
    online: Trainee | None,
    reference: Model | None,
    table: ScoreTable | None,
    precision: Precision,
) -> Scorer:
    """Settle what the options left open. Raises SpecError and TableError where a joint policy lacks what it needs."""
    policy = options.selection.chosen_policy
    asked = online or learner if policy.online != "none" else None
    manifest = table.manifest if table is not None else {}
    task = learner.model.task
    if policy.tasks and task.name not in policy.tasks:
        raise SpecError(f"policy '{policy}' is for {' and '.join(policy.tasks)}; this data set is {task.name}")
    if options.selection.joint:
        _check_joint(options, learner.model, manifest, table)
    model, forward = (asked.model, asked.forward) if asked else (None, None)
    coarse = _coarse(options, table)
    if asked and coarse:
        model = coarsened(asked.model, coarse)
        forward = torch.compile(model.module) if asked.compiled else model.module
    return Scorer(
        options=options,
        model=model,
        forward=forward,
        reference=reference,
        precision=precision,
        scale=options.selection.score_scale
        if options.selection.score_scale is not None
        else (1.0 if options.selection.joint else task.score_scale),
        joint_loss=options.selection.joint_loss or _joint_loss((asked or learner).model, manifest),
        reference_scale=manifest.get("scale") or 1.0,
        reference_bias=manifest.get("bias") or 0.0,
    )


def _coarse(options: RunOptions, table: ScoreTable | None) -> Coarse:
    """How the run's own model scores: as the reference did, or as the user says where there is none to agree with."""
    if table is None:
        return options.selection.coarse
    stored = Coarse.from_dict(table.manifest["reference"]["model"].get("coarse", {}))
    chosen = options.selection.coarse
    if chosen and chosen != stored:
        raise TableError(
            f"{table.folder}: its reference scored with {stored}, this run is to score with {chosen}; both losses "
            "must be made alike: leave --score-size and --score-patch-dropout out, or run score-reference with them"
        )
    return stored


def _joint_loss(scorer: Model, manifest: Mapping[str, Any]) -> ContrastiveLoss:
    own_bias = getattr(scorer.module, "logit_bias", None)
    return "sigmoid" if own_bias is not None and manifest.get("bias") is not None else "softmax"


def _check_joint(options: RunOptions, learner: Model, manifest: Mapping[str, Any], table: ScoreTable | None) -> None:
    assert table is not None
    if options.selection.joint_loss == "sigmoid" and manifest["bias"] is None:
        raise TableError(f"{table.folder}: its reference has no bias, which --joint-loss sigmoid needs; use softmax")
    own, reference = forward_flops(learner).per_example, table.manifest["flops"]["forward_per_example"]
    if options.selection.chosen_policy.larger_reference and reference <= own:
        raise SpecError(
            f"policy '{options.selection.policy}' needs a reference larger than the learner; this one takes "
            f"{format_flops(reference)} a forward pass, the learner {format_flops(own)}; take another joint policy"
        )


def joint_flops(options: RunOptions, scorer: Scorer, table: ScoreTable | None) -> float:
    """FLOPs of the matrix products with which a joint policy chooses at one step; 0 for the others."""
    if not options.selection.joint:
        return 0.0
    assert table is not None
    widths = [table.embedding_width] + ([embedding_width(scorer.model)] if scorer.model is not None else [])
    return float(
        selection_flops(
            options.super_batch_size,
            options.optimization.batch_size,
            widths,
            scorer.joint_loss,
            options.selection.chunks,
        )
    )


def make_selector(scorer: Scorer, seed: int) -> Selector:
    """Step 3, as the options have it."""
    options = scorer.options
    return Selector(
        options.selection.policy,
        options.optimization.batch_size,
        sampler=options.selection.sampler,
        temperature=options.selection.temperature,
        scale=scorer.scale,
        chunks=options.selection.chunks,
        joint_loss=scorer.joint_loss,
        seed=seed,
    )


def score_super_batch(scorer: Scorer, batch: SuperBatch, inputs: Inputs, device: torch.device) -> tuple[Losses, int]:
    """Step 2: the online model's losses or embeddings of the super-batch, and the stored ones of the reference; and how many
    of these the table lacked, so that they were made here."""
    options = scorer.options
    reference_loss_B = to_device(batch.reference_loss, device)
    image_BD, text_BD = (
        None if x is None else to_device(x, device) for x in (batch.reference_image, batch.reference_text)
    )
    made = 0
    if scorer.reference is not None:
        missing = torch.isnan(batch.reference_loss).nonzero().squeeze(1)
        made = len(missing)
        if made:
            pixels, targets = batch.pixels[scorer.reference.geometry][missing], batch.targets(scorer.reference)[missing]
            scored = _score(scorer, scorer.reference, to_device(pixels, device), to_device(targets, device))
            here = missing.to(device)
            reference_loss_B[here] = scored.loss
            if image_BD is not None and text_BD is not None:
                assert scored.image_embedding is not None and scored.text_embedding is not None
                image_BD[here], text_BD[here] = scored.image_embedding.half(), scored.text_embedding.half()
    online = None if scorer.model is None else _score(scorer, scorer.model, *inputs.of(scorer.model), scorer.forward)
    online_pairs = reference_pairs = None
    if options.selection.joint:
        assert image_BD is not None and text_BD is not None
        group_B = caption_groups(batch).to(device)
        reference_pairs = Pairs(image_BD, text_BD, scorer.reference_scale, scorer.reference_bias, group_B)
        online_pairs = None if scorer.model is None or online is None else _pairs(scorer.model, online, group_B)
    known = Losses(
        online.loss if online else None,
        reference_loss_B if options.selection.chosen_policy.reference != "none" else None,
        online_pairs,
        reference_pairs,
    )
    return known, made


def _score(scorer: Scorer, model: Model, pixels: torch.Tensor, targets: torch.Tensor, forward: Any = None) -> Scored:
    return score_batch(
        model,
        pixels,
        targets,
        precision=scorer.precision,
        micro_batch=scorer.options.optimization.micro_batch,
        forward=forward,
    )


def _pairs(model: Model, scored: Scored, group_B: torch.Tensor) -> Pairs:
    assert scored.image_embedding is not None and scored.text_embedding is not None
    bias = getattr(model.module, "logit_bias", None)
    scale = float(model.module.logit_scale.detach().exp())  # type: ignore[operator, union-attr]
    return Pairs(
        scored.image_embedding, scored.text_embedding, scale, 0.0 if bias is None else float(bias.detach()), group_B
    )


def caption_groups(batch: SuperBatch) -> torch.Tensor:
    """int64 [B]: the same number for identical captions, which are not each other's negatives."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(r.example.target, len(numbers)) for r in batch.records])


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, through pinned memory where it is a GPU, so that the copy runs beside the work there."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
