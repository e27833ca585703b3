"""`--policy auto`: a probe at the start of a run tells whether choosing pays. Where it does not, the rest is drawn uniformly.

The run begins as one that chooses. Beside the online model a twin trains, which began with the same weights: on uniform draws,
and on as many more of them as a step that chooses costs more than one that does not. So after n steps both have had what the
same budget buys. At each step of the probe both predict the same random examples, which neither has trained on yet in this step.
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
from .sub import SubBatch
from .trainee import Trainee, augment

# The probe's share of the planned steps, of which the second half is compared.
PROBE_SHARE, COMPARED = 0.1, 0.5
LEAST_STEPS = 4
# The names of the online model's view and tokens, and of the twin in a checkpoint.
ONLINE, TWIN = "online", "twin"


@dataclass(frozen=True)
class Verdict:
    """What a probe of `steps` steps found: the mean `difference` per example (of the share predicted right, or of the loss for
    captions) between learning from what is chosen and from uniform draws that cost as much, and its standard `error`.
    `share` is the part of the FLOPs that choosing takes; the run ends after `last` steps."""

    steps: int
    difference: float
    error: float
    share: float
    last: int

    @property
    def pays(self) -> bool:
        return self.difference > self.error

    def __str__(self) -> str:
        found = f"{100 * self.difference:.2f} +- {100 * self.error:.2f} points at equal FLOPs, of which it takes {self.share:.0%}"
        then = "choosing goes on" if self.pays else "the rest is drawn uniformly"
        return f"auto: in a probe of {self.steps:,} steps choosing brought {found}: {then}, {self.last:,} steps in all"


class Autopilot:
    """The probe of a run, and what came of it. `cost` is that of a step that chooses, `forward` and `training` the FLOPs of the
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
        self.steps = min(planned, max(LEAST_STEPS, round(PROBE_SHARE * planned)))
        self.generator = torch.Generator().manual_seed(seed)
        self.verdict: Verdict | None = None
        self._differences: list[float] = []
        self._owed = 0.0

    def watch(self, sub: SubBatch, share: float) -> StepCost:
        """Before both models take a step of the probe, at this share of the peak rate: compare them, and let the twin take its
        own. Returns what that costs."""
        drawn, b = sub.drawn, len(sub)
        rows = self._rows(len(drawn), b)
        batch = drawn.take(rows)
        pixels, targets = batch.views[ONLINE], batch.model_targets(ONLINE)
        chosen, uniform = (
            score_batch(trainee.model, pixels, targets, precision=self.precision)
            for trainee in (self.online, self.twin)
        )
        if chosen.predicted is not None and uniform.predicted is not None:
            right = (chosen.predicted == targets).float() - (uniform.predicted == targets).float()
            self._differences.append(float(right.mean()))
        else:
            self._differences.append(float((uniform.loss - chosen.loss).mean()))
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
        """After the probe's last step: what the rest of the budget is spent on."""
        late = self._differences[int(len(self._differences) * COMPARED) :]
        difference = statistics.fmean(late)
        error = statistics.stdev(late) / math.sqrt(len(late)) if len(late) > 1 else math.inf
        share = 1 - self.cost.learner_train / self.cost.total
        verdict = Verdict(self.steps, difference, error, share, step)
        each = self.cost.total if verdict.pays else self.cost.learner_train
        self.verdict = replace(verdict, last=step + max(0, math.floor((self.budget - spent) / each)))
        return self.verdict

    def step_cost(self, cost: StepCost) -> StepCost:
        """Of the steps to come."""
        stays = self.verdict is None or self.verdict.pays
        return cost if stays else StepCost(learner_train=cost.learner_train)

    def scored_steps(self, steps: int) -> int:
        """How many of the run's steps scored a super-batch."""
        return steps if self.verdict is None or self.verdict.pays else self.steps

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
