"""Algorithm 1 of arXiv 2312.05328, top to bottom in the order in which things happen.

Steps 1 to 3 (draw, score, choose) lie behind the iterator of sub-batches; the loop neither knows a policy nor where a
batch came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BudgetError, DivergedError, StoppedError
from ..ledger import Ledger, StepCost
from . import checkpoint
from .keeping import Keeping
from .pace import Pace
from .records import RunRecords
from .schedule import learning_rate
from .scorer import BudgetSpentError
from .signals import Stop
from .sub import SubBatch, SubBatches
from .timing import EVALUATE, Rates, Stages, total
from .trainee import Trainee, augment_views


@dataclass
class TrainingJob:
    """All that the loop works with. `warmup` counts steps; `augmenting` are the random numbers of the augmentation,
    `peak` the FLOP/s of all devices where they are known."""

    run: Path
    subs: SubBatches
    learner: Trainee
    online: Trainee | None
    steps: int
    warmup: int
    augment: str
    augmenting: torch.Generator
    cost: StepCost
    ledger: Ledger
    records: RunRecords
    pace: Pace
    timing: Stages
    stop: Stop
    keeping: Keeping
    peak: float | None = None

    @property
    def trainees(self) -> dict[str, Trainee]:
        return {"learner": self.learner} | ({"online": self.online} if self.online else {})


def train_loop(job: TrainingJob, after_step: Callable[[int], None] | None = None) -> int:
    """Run (or resume) all steps of a job. Returns how many were done: fewer than planned where the budget was spent earlier,
    on losses that the score table lacked. `after_step` is called with every step once all of it is done.

    At a signal it writes a checkpoint after the step that is going on, or at once while it waits for data, and raises
    StoppedError.
    """
    step = _resume(job)
    with job.timing.running():
        return _steps(job, step, after_step)


def _steps(job: TrainingJob, step: int, after_step: Callable[[int], None] | None) -> int:
    saved = step
    rates = Rates(step, job.timing.so_far(), job.ledger.spent, job.peak)
    job.pace.start(step, str(job.run))
    skipped = _say_skipped(job, 0)
    at_step = job.subs.batches.state_dict()
    subs = iter(job.subs)
    unlogged: tuple[SubBatch, float, dict[str, torch.Tensor]] | None = None
    try:
        job.stop.hold()
        while step < job.steps:
            _measure(job, step)
            sub = _draw(subs, job.run, step)
            if sub is None:
                break

            # Steps 4 and 5: the learner and the online model take one step each on the same sub-batch.
            with job.timing("train"):
                share = learning_rate(step, job.steps, 1.0, job.warmup)
                views = augment_views(sub.views, job.trainees, job.augment, job.augmenting)
                losses = {
                    name: trainee.step(views[name], trainee.targets_of(sub, name), share)
                    for name, trainee in job.trainees.items()
                }
            step += 1
            at_step = job.subs.batches.state_dict()
            job.ledger.add_step(job.cost)

            with job.timing("record"):
                job.records.selection(step, sub)
                skipped = _say_skipped(job, skipped)
                unlogged = None if job.pace.logs(step) else (sub, share, losses)
                if unlogged is None:
                    _check_finite(job.run, step, losses)
                    job.records.metric(_line(job, rates, step, sub, share, losses))
            if job.pace.saves(step):
                with job.timing("save"):
                    _check_finite(job.run, step, losses)
                    _save(job, step, at_step)
                job.pace.saved()
                saved = step
            job.pace.show(step, losses["learner"], job.ledger)
            if after_step:
                after_step(step)
            if job.stop.asked is not None:
                break
        job.stop.release()
        if unlogged is not None:  # the budget was spent before the step that would have been the last
            job.records.metric(_line(job, rates, step, *unlogged))
    except StoppedError as e:
        if step > saved and not job.stop.torn:
            _save(job, step, at_step)
        raise StoppedError(e.signal, f"after step {step:,} of {job.steps:,}") from None
    finally:
        job.pace.stop()
        job.subs.close()
    job.records.flush()
    return step


def _resume(job: TrainingJob) -> int:
    """The step to begin with: 0, or the one after the newest checkpoint, with everything as it was then."""
    found = checkpoint.load(job.run, job.trainees, _generators(job), job.records.log)
    if found is None:
        job.records.cut_after(0)
        job.keeping.resume()
        return 0
    job.subs.batches.load_state_dict(found.state["batches"])
    job.timing.load_state_dict(found.state["seconds"])
    job.ledger.load_state_dict(found.state["ledger"])
    job.records.cut_after(found.step)
    job.keeping.resume()
    job.records.log(f"resumed after step {found.step:,}")
    return found.step


def _save(job: TrainingJob, step: int, batches: dict[str, Any]) -> None:
    """A checkpoint, with `batches` the loader's state after this step. No file of selections spans one."""
    job.records.flush()
    state = {"batches": batches, "seconds": job.timing.state_dict(), "ledger": job.ledger.state_dict()}
    checkpoint.save(job.run, step, job.trainees, _generators(job), state)
    job.keeping.saved()


def _measure(job: TrainingJob, step: int) -> None:
    """Keep the learner's weights after `step`, and measure it, where that is due. A signal does not wait for the end."""
    with job.timing("save"):
        job.keeping.keep(step)
    if not job.keeping.measures(step):
        return
    job.stop.release()
    try:
        with job.timing(EVALUATE):
            quality = job.keeping.measure(step)
    finally:
        job.stop.hold()
    if quality:
        job.records.metric(
            {"step": step, "examples": step * job.subs.selector.b, "quality": dict(quality), **_costs(job)}
        )


def _say_skipped(job: TrainingJob, known: int) -> int:
    """Log the shards that were skipped since `known` of them were. Returns how many there are now."""
    skipped = job.subs.batches.skipped_shards
    for name, reason in list(skipped.items())[known:]:
        job.records.log(f"shard '{name}' cannot be read and is skipped: {reason}")
    return len(skipped)


def _generators(job: TrainingJob) -> dict[str, torch.Generator]:
    return {"select": job.subs.selector.generator, "augment": job.augmenting}


def _draw(subs: Any, run: Path, step: int) -> SubBatch | None:
    """Steps 1 to 3. None where the budget does not pay for another step."""
    try:
        sub: SubBatch = next(subs)
        return sub
    except BudgetSpentError:
        if not step:
            raise BudgetError(
                f"{run}: the budget is smaller than one step with the losses that the score table lacks; raise it, or "
                "run score-reference first"
            ) from None
        return None
    except DivergedError as e:
        raise _diverged(run, step + 1, "a score") from e


def _check_finite(run: Path, step: int, losses: dict[str, torch.Tensor]) -> None:
    for name, loss in losses.items():
        if not bool(torch.isfinite(loss)):
            raise _diverged(run, step, f"the {name}'s loss" if name == "learner" else f"the {name} model's loss")


def _diverged(run: Path, step: int, what: str) -> DivergedError:
    return DivergedError(f"{run}: {what} is nan or infinite at step {step:,}; lower --lr or --online-lr")


def _line(
    job: TrainingJob, rates: Rates, step: int, sub: SubBatch, share: float, losses: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    chosen, b = sub.selection, job.subs.selector.b
    return {
        "step": step,
        "examples": step * len(sub),
        "loss": float(losses["learner"]),
        "online_train_loss": _mean(losses.get("online")),
        "online_loss": _mean(chosen.online_loss),
        "reference_loss": _mean(chosen.reference_loss),
        "score": _mean(chosen.score),
        "score_selected": None if chosen.score is None else _mean(chosen.score[chosen.index]),
        **job.learner.model.task.step_metrics(sub.model_targets("learner")),
        "lr": share * job.learner.lr,
        **rates.since(step, job.timing.so_far(), job.ledger.spent, b),
        **_costs(job),
    }


def _costs(job: TrainingJob) -> dict[str, Any]:
    """What a run has cost so far."""
    seconds = job.timing.so_far()
    return {"seconds": {"total": total(seconds), **seconds}, "flops": job.ledger.lines()}


def _mean(values: torch.Tensor | None) -> float | None:
    return None if values is None else float(values.float().mean())
