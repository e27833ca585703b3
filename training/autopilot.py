"""`--policy auto`: while a run chooses, it watches whether that pays. Where it does not, the rest is drawn uniformly.

The run begins as one that chooses. Beside the online model a twin trains, which began with the same weights: on uniform draws,
and on as many more of them as a step that chooses costs more than one that does not. So after n steps both have had what the
same budget buys. At each step both predict the same random examples, which neither has trained on yet in this step, and what is
compared is the probability that they give to the labels: unlike the loss and the share that is right, its mean says little of
labels that are wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..ledger import StepCost
from ..scoring.forward import score_batch
from ..scoring.settings import Precision
from .augment import augment
from .sub_batch import SubBatch
from .trainee import Trainee

# A verdict after each tenth of the planned steps, up to the half, from the second half of what was seen since the one before.
TENTH, VERDICTS, COMPARED = 0.1, 5, 0.5
LEAST_STEPS = 4
# The share of the planned steps that a run watches where choosing pays.
WATCHED = TENTH * VERDICTS
# The names of the online model's view and tokens, and of the twin in a checkpoint.
ONLINE, TWIN = "online", "twin"
# What is compared, by what the data set has.
LABELS, SIMILARITY = "the labels' probability", "the pairs' similarity"


def every(planned: int) -> int:
    """How many steps lie between two verdicts of a run of so many planned steps."""
    return max(LEAST_STEPS, round(TENTH * planned))


def watched(planned: int) -> int:
    """For how many steps a run watches, of so many planned, where choosing pays to the last verdict."""
    return min(planned, VERDICTS * every(planned))


def watching(cost: StepCost, batch_size: int, forward: float, training: float) -> StepCost:
    """FLOPs of watching a step that costs `cost`, on average over steps: `forward` is one example's pass through the online
    model, `training` a step of it."""
    return StepCost(online_score=2 * batch_size * forward, online_train=cost.total / cost.learner_train * training)


@dataclass(frozen=True)
class Verdict:
    """What was found after `steps` steps: the mean `difference` per example of `measure` between learning from what is chosen
    and from uniform draws that cost as much, and its standard `error`. `share` is the part of the FLOPs that choosing takes; the
    run ends after `last` steps."""

    steps: int
    difference: float
    error: float
    share: float
    last: int
    measure: str

    @property
    def pays(self) -> bool:
        return self.difference > self.error

    def __str__(self) -> str:
        found = f"{100 * self.difference:+.2f} points of {self.measure} (standard error {100 * self.error:.2f})"
        then = "choosing goes on" if self.pays else "the rest is drawn uniformly"
        return (
            f"auto: after {self.steps:,} steps choosing brings {found} at equal FLOPs, of which it takes {self.share:.0%}: "
            f"{then}, {self.last:,} steps in all"
        )


class Autopilot:
    """What a run watches, and what came of it. `cost` is that of a step that chooses, `forward` and `training` the FLOPs of the
    online model for one example and one batch; `planned` steps would spend the `budget`."""

    def __init__(
        self,
        twin: Trainee,
        online: Trainee,
        cost: StepCost,
        *,
        forward: float,
        training: float,
        planned: int,
        budget: float,
        how: str,
        precision: Precision,
        seed: int,
    ) -> None:
        self.twin, self.online, self.cost = twin, online, cost
        self.forward, self.training, self.budget = forward, training, budget
        self.how, self.precision = how, precision
        self.every = every(planned)
        self.generator = torch.Generator().manual_seed(seed)
        self.verdict: Verdict | None = None
        self.measure = SIMILARITY
        self._differences: list[float] = []
        self._owed = 0.0

    @property
    def watching(self) -> bool:
        return self.verdict is None or (self.verdict.pays and self.verdict.steps < VERDICTS * self.every)

    def due(self, step: int) -> bool:
        """Whether a verdict is due after `step`."""
        return self.watching and step % self.every == 0

    def watch(self, sub: SubBatch, share: float) -> StepCost:
        """Before both models take a step, at this share of the peak rate: compare them, and let the twin take its own. Returns
        what that costs."""
        drawn, b = sub.drawn, len(sub)
        rows = self._rows(len(drawn), b)
        batch = drawn.take(rows)
        pixels, targets = batch.views[ONLINE], batch.model_targets(ONLINE)
        chosen, uniform = (
            score_batch(trainee.model, pixels, targets, precision=self.precision)
            for trainee in (self.online, self.twin)
        )
        both = (-chosen.loss, -uniform.loss)
        if chosen.predicted is not None:  # the loss is the cross-entropy of the label
            both = (both[0].exp(), both[1].exp())
            self.measure = LABELS
        self._differences.append(float((both[0] - both[1]).mean()))
        steps = 0
        self._owed += self.cost.total / self.cost.learner_train
        while self._owed >= 1:
            batch = drawn.take(self._rows(len(drawn), b))
            pixels = augment(batch.views[ONLINE], self.how, self.generator)
            self.twin.step(pixels, self.twin.targets_of(batch, ONLINE), share)
            self._owed -= 1
            steps += 1
        return StepCost(online_score=2 * b * self.forward, online_train=steps * self.training)

    def settle(self, step: int, spent: float) -> Verdict:
        """After a step at which a verdict is due: what the rest of the budget is spent on."""
        late = self._differences[int(len(self._differences) * COMPARED) :]
        self._differences = []
        difference = statistics.fmean(late)
        error = statistics.stdev(late) / math.sqrt(len(late)) if len(late) > 1 else math.inf
        share = 1 - self.cost.learner_train / self.cost.total
        verdict = Verdict(step, difference, error, share, step, self.measure)
        each = self.cost.total if verdict.pays else self.cost.learner_train
        self.verdict = replace(verdict, last=step + max(0, math.floor((self.budget - spent) / each)))
        return self.verdict

    def step_cost(self, cost: StepCost) -> StepCost:
        """Of the steps to come."""
        stays = self.verdict is None or self.verdict.pays
        return cost if stays else StepCost(learner_train=cost.learner_train)

    def scored_steps(self, steps: int) -> int:
        """How many of the run's steps scored a super-batch."""
        return steps if self.verdict is None or self.verdict.pays else self.verdict.steps

    def summary(self) -> dict[str, Any]:
        verdict = self.verdict
        return {} if verdict is None else {"pays": verdict.pays, **vars(verdict)}

    def state(self) -> dict[str, Any]:
        """JSON-able; the twin's weights and the generator are saved beside the other models'."""
        verdict = None if self.verdict is None else vars(self.verdict)
        return {"verdict": verdict, "differences": self._differences, "owed": self._owed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.verdict = Verdict(**state["verdict"]) if state["verdict"] else None
        self._differences, self._owed = list(state["differences"]), state["owed"]

    def _rows(self, B: int, b: int) -> torch.Tensor:
        return torch.randperm(B, generator=self.generator)[:b].sort().values
