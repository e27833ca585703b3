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
from ..errors import RunError
from ..ledger import Ledger, StepCost
from ..scoring.selection import Selection
from ..scoring.settings import Precision
from ..units import format_flops
from . import checkpoint
from .budget import learning_rate
from .options import RunOptions
from .records import RunRecords
from .selecting import Inputs, Scorer, make_selector, score_super_batch
from .superbatch import Position, SuperBatch, SuperBatches
from .trainee import Trainee, augment

PROGRESS_SECONDS = 5.0
# Without --checkpoint-every: so often, but never more than a fiftieth of the time goes into checkpoints.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 30.0, 0.02


@dataclass
class Job:
    """All that the loop works with. `reference_cost` are the FLOPs of one loss that the table lacks."""

    options: RunOptions
    run: Path
    data: SuperBatches
    learner: Trainee
    online: Trainee | None
    scorer: Scorer
    reference_cost: float
    steps: int
    cost: StepCost
    ledger: Ledger
    records: RunRecords
    device: torch.device
    precision: Precision


@dataclass(frozen=True)
class Finished:
    """What the loop leaves: seconds by stage, and counts of examples scored, skipped and failed."""

    seconds: dict[str, float]
    counts: dict[str, int]


def train_loop(job: Job, after_step: Callable[[int], None] | None = None) -> Finished:
    """Run (or go on with) all steps of a job. `after_step` is told every step once all of it is done."""
    options, device = job.options, job.device
    b, B = options.optimization.batch_size, options.super_batch_size
    selector = make_selector(job.scorer, options.seed)
    generators = {"select": selector.generator, "augment": torch.Generator().manual_seed(options.seed + 1)}
    trainees = {"learner": job.learner} | ({"online": job.online} if job.online else {})
    warmup = round(options.optimization.warmup * job.steps)
    how = options.optimization.augment or "none"

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
            inputs = Inputs(batch, device)
            learner_pixels, learner_targets = inputs.of(job.learner.model)
            known, made = (
                score_super_batch(job.scorer, batch, inputs, device) if options.selection.selects else (None, 0)
            )
            seconds["score"] += time.perf_counter() - started

            # Step 3: b indices without replacement, with probability softmax(S).
            started = time.perf_counter()
            chosen: Selection | None = None
            chosen_b: torch.Tensor | slice = slice(None)  # a uniform super-batch is the batch
            if known is not None:
                job.ledger.reference_score += job.reference_cost * made
                try:
                    chosen = selector.choose(known)
                except ValueError as e:  # b and the temperature were checked with the options: a score is not finite
                    raise _diverged(job, step, "a score") from e
                chosen_b = chosen.index
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

            if chosen is not None and step % options.records.selections_every == 0:
                _record_selection(job, step, batch, chosen)
            if step % options.records.log_every == 0 or step == job.steps:
                if not bool(torch.isfinite(loss)):
                    raise _diverged(job, step - 1, "the learner's loss")
                job.records.metric(
                    {
                        "step": step,
                        "examples": step * b,
                        "loss": float(loss),
                        "online_train_loss": _mean(online_train_loss),
                        **_score_means(chosen),
                        **job.learner.model.task.step_metrics(learner_targets[chosen_b]),
                        "lr": lr_share * job.learner.lr,
                        "seconds": dict(seconds),
                        "flops": job.ledger.lines(),
                    }
                )
            started = time.perf_counter()
            every = options.records.checkpoint_every
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
    return Finished(dict(seconds), {**counts, "scored": step * B if options.selection.selects else 0})


def _diverged(job: Job, done: int, what: str) -> RunError:
    return RunError(f"{job.run}: {what} is nan or infinite at step {done + 1:,}; lower --lr or --online-lr")


def _record_selection(job: Job, step: int, batch: SuperBatch, chosen: Selection) -> None:
    selected = torch.zeros(len(batch), dtype=torch.bool)
    selected[chosen.index.cpu()] = True
    losses = [None if t is None else t.float().cpu().numpy() for t in (chosen.online_loss, chosen.reference_loss)]
    assert chosen.score is not None
    score_B = chosen.score.float().cpu().numpy()
    job.records.selection(step, batch.shards, batch.keys, losses[0], losses[1], score_B, selected.numpy())


def _state(batch: SuperBatch, seconds: dict[str, float], ledger: Ledger) -> dict[str, Any]:
    return {"position": batch.position.to_dict(), "seconds": dict(seconds), "ledger": ledger.to_dict()}


def _score_means(chosen: Selection | None) -> dict[str, float | None]:
    if chosen is None or chosen.score is None:
        return dict.fromkeys(("online_loss", "reference_loss", "score", "score_selected"))
    return {
        "online_loss": _mean(chosen.online_loss),
        "reference_loss": _mean(chosen.reference_loss),
        "score": _mean(chosen.score),
        "score_selected": _mean(chosen.score[chosen.index]),
    }


def _mean(values: torch.Tensor | None) -> float | None:
    return None if values is None else float(values.float().mean())
