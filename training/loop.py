"""Algorithm 1 of arXiv 2312.05328, top to bottom in the order in which things happen."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..datasets.batches import prefetch
from ..datasets.decoding import Geometry
from ..errors import RunError
from ..scoring import scores
from ..scoring.forward import Precision, score_batch
from ..scoring.models import Model
from ..scoring.selection import select
from . import checkpoint
from .budget import format_flops, learning_rate
from .ledger import Ledger, StepCost
from .options import TrainOptions
from .records import RunRecords
from .superbatch import Position, SuperBatch, SuperBatches
from .trainee import Trainee, augment

PROGRESS_SECONDS = 5.0
# Without --checkpoint-every: so often, but never more than a fiftieth of the time goes into checkpoints.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 30.0, 0.02


@dataclass
class Job:
    """All that the loop works with. `reference` is there only where missing scores are to be made in the run."""

    options: TrainOptions
    run: Path
    data: SuperBatches
    learner: Trainee
    online: Trainee | None
    reference: Model | None
    reference_cost: float
    steps: int
    cost: StepCost
    ledger: Ledger
    records: RunRecords
    device: torch.device
    precision: Precision
    score_precision: Precision
    score_scale: float


@dataclass(frozen=True)
class Finished:
    """What the loop leaves: seconds by stage, and counts of examples scored, skipped and failed."""

    seconds: dict[str, float]
    counts: dict[str, int]


def train_loop(job: Job, after_step: Callable[[int], None] | None = None) -> Finished:
    """Run (or go on with) all steps of a job. `after_step` is told every step once all of it is done."""
    options, device = job.options, job.device
    b, B = options.batch_size, options.super_batch_size
    generators = {name: torch.Generator().manual_seed(options.seed + i) for i, name in enumerate(("select", "augment"))}
    trainees = {"learner": job.learner} | ({"online": job.online} if job.online else {})
    warmup = round(options.warmup * job.steps)
    how = options.augment or "none"

    step, position = 0, Position()
    seconds: defaultdict[str, float] = defaultdict(float)
    resumed = checkpoint.load(job.run, trainees, generators)
    if resumed:
        step, position = resumed.step, Position.from_dict(resumed.state["position"])
        seconds.update(resumed.state["seconds"])
        job.ledger = Ledger(**resumed.state["ledger"])
        job.records.log(f"resumed after step {step:,}")
    else:
        torch.manual_seed(options.seed)
    job.records.cut_after(step)

    batches = prefetch(job.data.stream(position))
    shown = time.perf_counter()
    next_checkpoint = shown + CHECKPOINT_SECONDS
    first_step, loop_started = step, time.perf_counter()
    counts: dict[str, int] = {}
    try:
        while step < job.steps:
            started = time.perf_counter()
            batch = next(batches)
            counts = batch.counts
            seconds["data"] += time.perf_counter() - started

            # Steps 1 and 2: a super-batch X of B, and S = loss(X | online) - loss(X | reference).
            started = time.perf_counter()
            inputs = _Inputs(batch, device)
            learner_pixels, learner_targets = inputs.of(job.learner.model)
            score_B = online_loss_B = reference_loss_B = None
            if options.selects:
                reference_loss_B = _reference_losses(job, batch)
                if options.policy in scores.NEEDS_ONLINE_LOSS:
                    scorer = job.online or job.learner
                    online_loss_B = score_batch(
                        scorer.model,
                        *inputs.of(scorer.model),
                        precision=job.score_precision,
                        micro_batch=options.micro_batch,
                        forward=scorer.forward,
                    ).loss
                score_B = scores.score(options.policy, online_loss_B, reference_loss_B, scale=job.score_scale)
            seconds["score"] += time.perf_counter() - started

            # Step 3: b indices without replacement, with probability softmax(S).
            started = time.perf_counter()
            chosen_b: torch.Tensor | slice = slice(None)  # a uniform super-batch is the batch
            if score_B is not None:
                try:
                    chosen_b = select(
                        score_B,
                        b,
                        sampler=options.sampler,
                        temperature=options.temperature,
                        generator=generators["select"],
                    )
                except ValueError as e:  # b and the temperature were checked with the options: a score is not finite
                    raise _diverged(job, step, "a score") from e
            seconds["select"] += time.perf_counter() - started

            # Steps 4 and 5: the learner and the online model take one step each on the same sub-batch.
            started = time.perf_counter()
            lr_share = learning_rate(step, job.steps, 1.0, warmup)
            pixels = augment(learner_pixels[chosen_b], how, generators["augment"])
            loss = job.learner.step(pixels, learner_targets[chosen_b], lr_share * job.learner.lr, job.precision)
            online_train_loss = None
            if job.online:
                own_pixels, own_targets = inputs.of(job.online.model)
                # Where both see the same geometry they see the very same augmented pictures.
                if own_pixels is not learner_pixels:
                    pixels = augment(own_pixels[chosen_b], how, generators["augment"])
                online_lr = lr_share * job.online.lr
                online_train_loss = job.online.step(pixels, own_targets[chosen_b], online_lr, job.precision)
            step += 1
            job.ledger.add_step(job.cost)
            seconds["train"] += time.perf_counter() - started

            if score_B is not None and isinstance(chosen_b, torch.Tensor) and step % options.selections_every == 0:
                _record_selection(job, step, batch, online_loss_B, reference_loss_B, score_B, chosen_b)
            if step % options.log_every == 0 or step == job.steps:
                if not bool(torch.isfinite(loss)):
                    raise _diverged(job, step - 1, "the learner's loss")
                job.records.metric(
                    {
                        "step": step,
                        "examples": step * b,
                        "loss": float(loss),
                        "online_train_loss": _mean(online_train_loss),
                        "online_loss": _mean(online_loss_B),
                        "reference_loss": _mean(reference_loss_B),
                        "score": _mean(score_B),
                        "score_selected": _mean(score_B[chosen_b]) if score_B is not None else None,
                        "lr": lr_share * job.learner.lr,
                        "seconds": dict(seconds),
                        "flops": job.ledger.lines(),
                    }
                )
            started = time.perf_counter()
            every = options.checkpoint_every
            if step < job.steps and (step % every == 0 if every else started > next_checkpoint):
                job.records.flush()
                checkpoint.save(job.run, step, trainees, generators, _state(batch, seconds, job.ledger))
                saved = time.perf_counter()
                next_checkpoint = saved + max(CHECKPOINT_SECONDS, (saved - started) / CHECKPOINT_SHARE)
            if time.perf_counter() - shown > PROGRESS_SECONDS or step == job.steps:
                shown = time.perf_counter()
                rate = (step - first_step) / (shown - loop_started)
                job.records.log(
                    f"step {step:,}/{job.steps:,}, {rate * b:,.0f} examples/s trained, loss {float(loss):.3f}, "
                    f"{format_flops(job.ledger.spent)} spent, {(job.steps - step) / rate:,.0f} s left"
                )
            if after_step:
                after_step(step)
    finally:
        batches.close()  # type: ignore[attr-defined]
    job.records.flush()
    return Finished(dict(seconds), {**counts, "scored": step * B if options.selects else 0})


class _Inputs:
    """A super-batch on the device: every geometry and every model's targets are moved (and captions tokenized) once."""

    def __init__(self, batch: SuperBatch, device: torch.device) -> None:
        self._batch, self._device = batch, device
        self._pixels: dict[Geometry, torch.Tensor] = {}
        self._targets: dict[int, torch.Tensor] = {}

    def of(self, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels uint8 [B, H, W, 3] and targets of all B for this model."""
        if model.geometry not in self._pixels:
            self._pixels[model.geometry] = _to(self._batch.pixels[model.geometry], self._device)
        if id(model.tokenizer) not in self._targets:  # classifiers have none, and all share the labels
            self._targets[id(model.tokenizer)] = _to(self._batch.targets(model), self._device)
        return self._pixels[model.geometry], self._targets[id(model.tokenizer)]


def _diverged(job: Job, done: int, what: str) -> RunError:
    return RunError(f"{job.run}: {what} is nan or infinite at step {done + 1:,}; lower --lr or --online-lr")


def _reference_losses(job: Job, batch: SuperBatch) -> torch.Tensor | None:
    """The stored losses, on the device; what the table lacks is scored here and charged to the reference's line."""
    loss_B = _to(batch.reference_loss, job.device)
    if job.reference is None:
        return loss_B if job.data.scores is not None else None
    missing = torch.isnan(batch.reference_loss).nonzero().squeeze(1)
    if len(missing):
        targets = batch.targets(job.reference)[missing]
        pixels = batch.pixels[job.reference.geometry][missing]
        scored = score_batch(
            job.reference,
            _to(pixels, job.device),
            _to(targets, job.device),
            precision=job.score_precision,
            micro_batch=job.options.micro_batch,
        )
        loss_B[missing.to(job.device)] = scored.loss
        job.ledger.reference_score += job.reference_cost * len(missing)
    return loss_B


def _record_selection(
    job: Job,
    step: int,
    batch: SuperBatch,
    online_loss_B: torch.Tensor | None,
    reference_loss_B: torch.Tensor | None,
    score_B: torch.Tensor,
    chosen_b: torch.Tensor,
) -> None:
    selected = torch.zeros(len(batch), dtype=torch.bool)
    selected[chosen_b.cpu()] = True
    arrays = [None if t is None else t.float().cpu().numpy() for t in (online_loss_B, reference_loss_B)]
    job.records.selection(
        step, batch.shards, batch.keys, arrays[0], arrays[1], score_B.float().cpu().numpy(), selected.numpy()
    )


def _state(batch: SuperBatch, seconds: dict[str, float], ledger: Ledger) -> dict[str, Any]:
    return {"position": batch.position.to_dict(), "seconds": dict(seconds), "ledger": ledger.to_dict()}


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _mean(values: torch.Tensor | None) -> float | None:
    return None if values is None else float(values.float().mean())
