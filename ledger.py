"""The compute ledger: five lines of FLOPs, four regimes of what to count, and their words for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import BudgetError
from .units import format_flops

LINES = {
    "learner_train": "learner train",
    "online_score": "online score",
    "online_train": "online train",
    "reference_score": "reference score",
    "reference_train": "reference train",
}
# From the cheapest to count to the most; each counts what the one before counts, and more.
REGIMES = {
    "fully_amortised": "fully amortised",
    "foundation": "foundation data set",
    "pretrained_reference": "pretrained reference",
    "nothing_amortised": "nothing amortised",
}
# The policy that chooses nothing: what every other one is compared with.
BASELINE = "uniform"


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """FLOPs of one step: training the learner on b, scoring B with the online model, training that on b.

    `reference_score` and `reference_train` are those of a reference that trains in the run, on all of B. `choices` is what
    choosing cost the run that is replayed; this run does not spend it.
    """

    learner_train: float = 0.0
    online_score: float = 0.0
    online_train: float = 0.0
    reference_score: float = 0.0
    reference_train: float = 0.0
    choices: float = 0.0

    @property
    def total(self) -> float:
        return self.learner_train + self.choosing

    @property
    def choosing(self) -> float:
        """All but the learner's part."""
        return self.online_score + self.online_train + self.reference_score + self.reference_train

    def times(self, steps: float) -> StepCost:
        """What so many such steps cost."""
        return StepCost(**{field.name: steps * getattr(self, field.name) for field in fields(self)})

    def to_dict(self) -> dict[str, float]:
        """As manifest.json has it: what is zero in most runs is left out of the others."""
        usual = ("learner_train", "online_score", "online_train")
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: flops for name, flops in found.items() if flops or name in usual}


@dataclass(kw_only=True)
class Ledger:
    """FLOPs (2 x multiply-adds) of a run by line.

    `reference_score` is the cost of the whole score table, paid once and shared by every run that reads it, and of what
    this run had its reference score itself, which is `scored_in_run`. `reference_train` is None where nobody recorded it;
    of it `trained_in_run` is what this run spent on a reference that trains during it. No regime but the fully amortised
    one leaves out what was spent in the run: no other run can use it.
    `choices` is what choosing cost the run that this one replays: the budget does not count it, nor does a regime that has
    the choices as given. `outside` holds what no budget counts: evaluation, and the re-scoring that verifies the join.
    """

    learner_train: float = 0.0
    online_score: float = 0.0
    online_train: float = 0.0
    reference_score: float = 0.0
    reference_train: float | None = 0.0
    scored_in_run: float = 0.0
    trained_in_run: float = 0.0
    choices: float = 0.0
    outside: dict[str, float] = field(default_factory=dict)

    def add_step(self, cost: StepCost) -> None:
        self.learner_train += cost.learner_train
        self.online_score += cost.online_score
        self.online_train += cost.online_train
        if cost.reference_score:
            self.add_scored_in_run(cost.reference_score)
        if cost.reference_train:
            self.reference_train = (self.reference_train or 0.0) + cost.reference_train
            self.trained_in_run += cost.reference_train
        self.choices += cost.choices

    def add_scored_in_run(self, flops: float) -> None:
        """FLOPs of the reference for losses that no table has. The budget pays for them."""
        self.reference_score += flops
        self.scored_in_run += flops

    def add_outside(self, line: str, flops: float) -> None:
        self.outside[line] = self.outside.get(line, 0.0) + flops

    @property
    def spent(self) -> float:
        """What the budget counts: everything that this run itself computed to train."""
        return self.learner_train + self.online_score + self.online_train + sum(self.in_run.values())

    @property
    def in_run(self) -> dict[str, float]:
        """What of the reference's lines this run computed itself, by line. Empty for a run that reads all from a table."""
        found = {"reference_score": self.scored_in_run, "reference_train": self.trained_in_run}
        return {line: flops for line, flops in found.items() if flops}

    def lines(self) -> dict[str, float | None]:
        return {line: getattr(self, line) for line in LINES}

    def regimes(self) -> dict[str, float | None]:
        """Total FLOPs under each regime; a figure without its regime says nothing."""
        foundation = self.spent
        pretrained = foundation + self.choices + self.reference_score - self.scored_in_run
        return {
            "fully_amortised": self.learner_train,
            "foundation": foundation,
            "pretrained_reference": pretrained,
            "nothing_amortised": None
            if self.reference_train is None
            else pretrained + self.reference_train - self.trained_in_run,
        }

    def state_dict(self) -> dict[str, Any]:
        """All lines, and what lies outside them. JSON-able."""
        found = {**self.lines(), "scored_in_run": self.scored_in_run, "outside": dict(self.outside)}
        more = {"trained_in_run": self.trained_in_run, "choices": self.choices}
        return found | {name: flops for name, flops in more.items() if flops}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in (*LINES, "outside"):
            setattr(self, name, state[name])
        for name in ("scored_in_run", "trained_in_run", "choices"):
            setattr(self, name, state.get(name, 0.0))


def steps_within(budget: float, flops_per_step: float, charged: float = 0.0) -> int:
    """Whole steps that `budget` pays for after `charged`. Raises BudgetError where it is not even one."""
    if not math.isfinite(budget):
        raise BudgetError(f"the budget is {budget}, expected a number of FLOPs")
    steps = math.floor((budget - charged) / flops_per_step)
    if steps < 1:
        already = f" after {format_flops(charged)} for the reference" if charged else ""
        raise BudgetError(
            f"the budget of {format_flops(budget)}{already} is smaller than one step ({format_flops(flops_per_step)}); "
            "raise it, or lower --batch-size or the model's size"
        )
    return steps
