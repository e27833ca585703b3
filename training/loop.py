"""Algorithm 1 of arXiv 2312.05328, top to bottom in the order in which things happen.

Steps 1 to 3 (draw, score, choose) lie behind the iterator of sub-batches; the loop neither knows a policy nor where a
batch came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BudgetError, CurateError, DivergedError, StoppedError
from ..ledger import Ledger, StepCost
from . import checkpoint
from .augment import augment_views
from .autopilot import TWIN, Autopilot, Verdict
from .group import Group
from .keeping import Keeping
from .moving_reference import NAME, MovingReference
from .pace import Pace
from .past import PastLosses
from .positions import skipped_of
from .records import RunRecords
from .schedule import learning_rate
from .scorer import BudgetSpentError
from .signals import Stop
from .sub import SubBatches
from .sub_batch import SubBatch
from .timing import EVALUATE, Rates, Stages, total
from .trainee import Trainee, align


@dataclass
class TrainingJob:
    """All that the loop works with. `warmup` and `cooldown` count steps; `augmenting` are the random numbers of the augmentation,
    `peak` the FLOP/s of all devices where they are known. `reference` trains on super-batches, where one does."""

    run: Path
    subs: SubBatches
    learner: Trainee
    online: Trainee | None
    steps: int
    warmup: int
    cooldown: int | None
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
    auto: Autopilot | None = None
    past: PastLosses | None = None
    reference: MovingReference | None = None

    @property
    def trainees(self) -> dict[str, Trainee]:
        """Those that train on what was chosen."""
        return {"learner": self.learner} | ({"online": self.online} if self.online else {})

    @property
    def stepping(self) -> dict[str, Trainee]:
        """Those that take steps: the learner alone, once a run found that choosing does not pay."""
        verdict = self.auto.verdict if self.auto else None
        return self.trainees if verdict is None or verdict.pays else {"learner": self.learner}

    @property
    def all_trainees(self) -> dict[str, Trainee]:
        reference = {NAME: self.reference.trainee} if self.reference else {}
        return self.trainees | reference | ({TWIN: self.auto.twin} if self.auto else {})

    def follow(self, verdict: Verdict) -> None:
        """Go on as was found, from the next step on."""
        assert self.auto is not None
        self.steps, self.cost = verdict.last, self.auto.step_cost(self.cost)
        self.pace.end_at(verdict.last)
        self.keeping.end_at(verdict.last)
        if not verdict.pays:
            self.subs.draw_uniformly()

    @property
    def group(self) -> Group:
        return self.subs.group


def train_loop(job: TrainingJob, after_step: Callable[[int], None] | None = None) -> int:
    """Run (or resume) all steps of a job. Returns how many were done: fewer than planned where the budget was spent earlier,
    on losses that the score table lacked. `after_step` is called with every step once all of it is done.

    At a signal it writes a checkpoint after the step that is going on, or at once while it waits for data, and raises
    StoppedError. In a group all ranks do the same steps, rank 0 writes, and the clock of rank 0 decides when to save.
    """
    step = _resume(job)
    with job.timing.running():
        return _steps(job, step, after_step)


def _steps(job: TrainingJob, step: int, after_step: Callable[[int], None] | None) -> int:
    saved = step
    group, batches = job.group, job.subs.batches
    rates = Rates(step, job.timing.so_far(), job.ledger.spent, job.peak)
    job.pace.start(step, str(job.run))
    said: set[str] = set()
    _say_skipped(job, said)
    at_step = job.subs.own_state()
    subs = iter(job.subs)
    unlogged: tuple[SubBatch, float, dict[str, torch.Tensor]] | None = None
    try:
        job.stop.hold()
        while step < job.steps:
            _measure(job, step)
            sub = _draw(subs, job, step)
            if sub is None:
                break

            # Steps 4 and 5: the learner and the online model take one step each on the same sub-batch.
            share = learning_rate(step, job.steps, 1.0, job.warmup, job.cooldown)
            if job.subs.trains:
                with job.timing("train"):
                    losses = _train(job, sub, step, share)
            else:  # this rank scores the next super-batch meanwhile
                losses = dict.fromkeys(job.stepping, torch.zeros(()))
                job.subs.meanwhile()
            step += 1
            at_step = job.subs.own_state()
            job.ledger.add_step(job.cost)
            if job.auto is not None and job.auto.due(step):
                job.follow(job.auto.settle(step, job.ledger.spent))
                job.records.log(str(job.auto.verdict))

            with job.timing("record"):
                unlogged, line = (sub, share, losses), None
                if job.pace.logs(step):
                    _check_finite(job, step, losses)
                    unlogged, line = None, _line(job, rates, step, sub, share, losses)
                trouble = _record(job, step, sub, line)
            wants = job.pace.saves(step) and group.is_first, not said.issuperset(batches.skipped_shards)
            saves, skips, signal = group.agree(trouble, *wants, job.stop.asked or 0)
            if skips:
                _say_skipped(job, said)
            if saves:
                with job.timing("save"):
                    _check_finite(job, step, losses)
                    _save(job, step, at_step)
                job.pace.saved()
                saved = step
            job.pace.show(step, losses["learner"], job.ledger, job.subs.told)
            if after_step:
                after_step(step)
            if signal:
                break
        (signal,) = group.agree(None, job.stop.asked or 0)
        if signal or group.size == 1:  # else ranks that a signal meets at another time than others would part
            job.stop.release(signal)
        if unlogged is not None:  # the budget was spent before the step that would have been the last
            job.records.metric(_line(job, rates, step, *unlogged))
    except StoppedError as e:
        if step > saved and not job.stop.torn:
            _save(job, step, at_step)
        raise group.alike(StoppedError(e.signal, f"after step {step:,} of {job.steps:,}")) from None
    finally:
        job.pace.stop()
        job.subs.close()
    with group.together():
        job.records.flush()
    return step


def _train(job: TrainingJob, sub: SubBatch, step: int, share: float) -> dict[str, torch.Tensor]:
    """Steps 4 and 5, at this share of the peak rate. Returns the losses."""
    if job.auto is not None and job.auto.watching:
        job.ledger.add_step(job.auto.watch(sub, share))
    places = job.subs.selector.b, sub.positions
    views = augment_views(sub.views, job.stepping, job.augment, job.augmenting, places)
    losses = {
        name: trainee.step(views[name], trainee.targets_of(sub, name), share, sub.weight)
        for name, trainee in job.stepping.items()
    }
    align([*job.stepping.values()])
    if job.past is not None and job.learner.weighed is not None:
        job.past.learned(sub, job.learner.weighed.of_batch())
    if job.reference is not None:
        losses[NAME] = job.reference.learn(sub.drawn, step + 1, share)
    return losses


def _resume(job: TrainingJob) -> int:
    """The step to begin with: 0, or the one after the newest checkpoint, with everything as it was then."""
    trainees = job.all_trainees if job.subs.trains else {}
    found = checkpoint.load(job.run, trainees, _generators(job), job.records.log, job.group)
    if found is None:
        with job.group.together():
            job.records.cut_after(0)
        job.keeping.resume()
        return 0
    job.subs.resume(found.state["batches"], found.scored)
    if job.past is not None:
        job.past.restore(found.past)
    job.timing.load_state_dict(found.state["seconds"])
    job.ledger.load_state_dict(found.state["ledger"])
    if job.auto is not None:
        job.auto.load_state(found.state["autopilot"])
        if job.auto.verdict is not None:
            job.follow(job.auto.verdict)
    with job.group.together():
        job.records.cut_after(found.step)
    job.keeping.resume()
    job.records.log(f"resumed after step {found.step:,}")
    return found.step


def _save(job: TrainingJob, step: int, own: dict[str, Any]) -> None:
    """A checkpoint, with `own` the loader's state after this step. No file of selections spans one. A collective."""
    group = job.group
    batches, scored = job.subs.whole_state(own), job.subs.scored()
    ranks = group.share(checkpoint.random_state(alone=False)) if group.size > 1 else []
    trainees = {name: trainee.state() for name, trainee in job.all_trainees.items()}
    past = job.past.state() if job.past else None
    with group.together():
        if group.is_first:
            job.records.flush()
            state = {"batches": batches, "seconds": job.timing.state_dict(), "ledger": job.ledger.state_dict()}
            if job.auto is not None:
                state["autopilot"] = job.auto.state()
            checkpoint.save(job.run, step, trainees, _generators(job), state, ranks, scored, past)
            job.keeping.saved()


def _measure(job: TrainingJob, step: int) -> None:
    """Keep the learner's weights after `step`, and measure it, where that is due. A signal does not wait for the end, unless
    other ranks would. A collective."""
    if job.keeping.keeps(step):
        with job.timing("save"):
            job.keeping.keep(step)
    if not job.keeping.measures(step):
        return
    with job.stop.released() if job.group.size == 1 else nullcontext(), job.timing(EVALUATE):
        quality = job.keeping.measure(step)
    if quality:
        line = {"step": step, "examples": step * job.subs.selector.b, "quality": dict(quality), **_costs(job)}
        with job.group.together():
            job.records.metric(line)


def _record(job: TrainingJob, step: int, sub: SubBatch, line: dict[str, Any] | None) -> CurateError | None:
    """Write a step's records. Returns what rank 0 met where it could not, such as a full disk."""
    try:
        job.records.selection(step, sub)
        if line is not None:
            job.records.metric(line)
    except CurateError as e:
        return e
    return None


def _say_skipped(job: TrainingJob, said: set[str]) -> None:
    """Log the shards that any rank skips, but those that were said. A collective."""
    for name, reason in skipped_of(job.subs.drawn_state()).items():
        if name not in said:
            said.add(name)
            job.records.log(f"shard '{name}' cannot be read and is skipped: {reason}")


def _generators(job: TrainingJob) -> dict[str, torch.Generator]:
    own = {"augment reference": job.reference.augmenting} if job.reference else {}
    twin = {TWIN: job.auto.generator} if job.auto else {}
    return {"select": job.subs.selector.generator, "augment": job.augmenting, **own, **twin}


def _draw(subs: Any, job: TrainingJob, step: int) -> SubBatch | None:
    """Steps 1 to 3. None where the budget does not pay for another step."""
    try:
        sub: SubBatch = next(subs)
        return sub
    except BudgetSpentError as e:
        if not step:
            raise job.group.alike(BudgetError(f"{job.run}: {e}")) from None
        return None
    except DivergedError as e:
        raise _diverged(job, step + 1, "a score") from e


def _check_finite(job: TrainingJob, step: int, losses: dict[str, torch.Tensor]) -> None:
    """Raises DivergedError on all ranks. A collective."""
    finite = job.group.sum(torch.stack([loss.detach().float().cpu() for loss in losses.values()])).isfinite().tolist()
    for name, good in zip(losses, finite, strict=True):
        if not good:
            raise _diverged(job, step, f"the {name}'s loss" if name == "learner" else f"the {name} model's loss")


def _diverged(job: TrainingJob, step: int, what: str) -> BaseException:
    return job.group.alike(
        DivergedError(f"{job.run}: {what} is nan or infinite at step {step:,}; lower --lr or --online-lr")
    )


def _line(
    job: TrainingJob, rates: Rates, step: int, sub: SubBatch, share: float, losses: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """A line of metrics.jsonl. A collective."""
    group, b = job.group, job.subs.selector.b
    loss = {name: float(value) for name, value in losses.items()}
    if group.size > 1:
        means = group.sum(torch.tensor(list(loss.values()), dtype=torch.float64)) / job.subs.training
        loss = dict(zip(loss, means.tolist(), strict=True))
    speed = rates.since(step, job.timing.so_far(), job.ledger.spent, b)
    return {
        "step": step,
        "examples": step * b,
        "loss": loss["learner"],
        "online_train_loss": loss.get("online"),
        **({"reference_train_loss": loss[NAME]} if NAME in loss else {}),
        **_means(sub, group if job.subs.local else None),
        **job.subs.metrics(step),
        **job.learner.model.task.step_metrics(sub.model_targets("learner"), group),
        "lr": share * job.learner.lr,
        **speed,
        **_between_ranks(job, sub, speed["samples_per_second"]),
        **_costs(job),
    }


def _between_ranks(job: TrainingJob, sub: SubBatch, speed: float | None) -> dict[str, Any]:
    """What went from one rank to another in this step, and how long the slowest rank has waited for data. A collective."""
    if job.group.size == 1:
        return {}
    tensors = {id(tensor): tensor for tensor in (*sub.views.values(), *sub.tokens.values())}
    row = sum(math.prod(tensor.shape[1:]) * tensor.element_size() for tensor in tensors.values())
    return {
        "samples_per_second_per_gpu": None if speed is None else speed / job.group.size,
        "slowest_data_seconds": max(job.group.share(job.timing.so_far().get("data", 0.0))),
        "rows_moved": sub.moved,
        "bytes_moved": sub.moved * row,
    }


def _costs(job: TrainingJob) -> dict[str, Any]:
    """What a run has cost so far."""
    seconds, in_run = job.timing.so_far(), job.ledger.in_run
    found = {"seconds": {"total": total(seconds), **seconds}, "flops": job.ledger.lines()}
    return {**found, "flops_in_run": in_run} if in_run else found


def _means(sub: SubBatch, group: Group | None) -> dict[str, float | None]:
    """Of the super-batch's losses and scores, and of the chosen scores. `group` are the ranks where each knows its own rows
    alone: a collective then."""
    chosen = sub.selection
    known = {
        "online_loss": chosen.online_loss,
        "reference_loss": chosen.reference_loss,
        "score": chosen.score,
        "score_selected": None if chosen.score is None else chosen.score[chosen.index],
    }
    if group is None:
        return {name: None if values is None else float(values.float().mean()) for name, values in known.items()}
    sums = {name: [float(x.double().sum()), len(x)] for name, x in known.items() if x is not None}
    totals = group.sum(torch.tensor([*sums.values()], dtype=torch.float64)).tolist() if sums else []
    found = {name: total / count for name, (total, count) in zip(sums, totals, strict=True)}
    return {name: found.get(name) for name in known}
