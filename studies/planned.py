"""What a run with selection costs beside a uniform one, and what it must save to pay."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..ledger import REGIMES, Ledger, StepCost

# The paper's ladder of scorers for ViT-L is B 1/3.5, S 1/13, Ti 1/49: two sizes are a factor of 49 / 3.5 = 14.
SIZE_STEP = math.sqrt(14)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Costs of a selecting run beside a uniform run of the same budget. All costs are in one unit.

    The unit is a FLOP, or, where `relative`, what the uniform run costs. `step` is one step with selection, with the
    reference's part of it where that trains in the run;
    `reference_step` what the reference adds to it where its scores are not stored; `reference_score` and
    `reference_train` are paid once for `runs` runs. `watching` is what a run that watches whether choosing pays spends on that in
    all, where it does pay. `ratio` is F_online / F_learner.
    """

    ratio: float
    filter_ratio: float
    step: StepCost
    uniform_steps: float
    steps: float
    reference_step: float = 0.0
    reference_score: float = 0.0
    reference_train: float = 0.0
    watching: StepCost = field(default_factory=StepCost)
    runs: int = 1
    budget: float = 1.0
    relative: bool = False
    expected_saving: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def uniform_cost(self) -> float:
        return self.uniform_steps * self.step.learner_train

    def ledger(self) -> Ledger:
        """The five lines of the selecting run; the reference's are this run's share of them."""
        return Ledger(
            learner_train=self.step.learner_train * self.steps,
            online_score=self.step.online_score * self.steps + self.watching.online_score,
            online_train=self.step.online_train * self.steps + self.watching.online_train,
            reference_score=(self.reference_step + self.step.reference_score) * self.steps
            + self.reference_score / self.runs,
            reference_train=self.step.reference_train * self.steps + self.reference_train / self.runs,
            scored_in_run=self.step.reference_score * self.steps,
            trained_in_run=self.step.reference_train * self.steps,
        )

    def extra(self, regime: str) -> tuple[float, float]:
        """What a regime adds to the learner's own training: (each step, once)."""
        rank = list(REGIMES).index(regime)
        each = once = 0.0
        if rank >= 1:
            each += self.step.choosing
            once += self.watching.total
        if rank >= 2:
            each += self.reference_step
            once += self.reference_score / self.runs
        if rank >= 3:
            once += self.reference_train / self.runs
        return each, once

    def most_updates(self, regime: str) -> float:
        """Learner updates that cost, with all that the regime counts, what uniform costs; 0 where none do.

        The largest n with n (step + each) + once <= n_uniform step.
        """
        each, once = self.extra(regime)
        return max(0.0, self.uniform_cost - once) / (self.step.learner_train + each)

    def break_even(self, regime: str) -> float | None:
        """Share of uniform's updates that must be saved before anything is gained; None where no saving suffices."""
        updates = self.most_updates(regime)
        return max(0.0, 1 - updates / self.uniform_steps) if updates > 0 else None

    def total_at(self, regime: str, saving: float) -> float:
        """What the quality of the uniform run costs under this regime where `saving` of its updates are saved."""
        each, once = self.extra(regime)
        return (1 - saving) * self.uniform_steps * (self.step.learner_train + each) + once

    def largest_ratio(self, regime: str, saving: float) -> float:
        """The largest F_online / F_learner at which `saving` (in (0, 1)) still breaks even; infinite where any does.

        Online model and reference shrink alike: with beta = 1 - saving and their costs scaled by x, the total
        beta n (step + x each) + x once equals uniform's n step at the x solved for here.
        """
        each, once = self.extra(regime)
        scorers = (1 - saving) * self.uniform_steps * each + once
        return self.ratio * saving * self.uniform_cost / scorers if scorers else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain data for printing; None in `break_even` means that no saving suffices."""
        ledger = self.ledger()
        return {
            "ratio": self.ratio,
            "filter_ratio": self.filter_ratio,
            "runs": self.runs,
            "unit": "uniform's total" if self.relative else "FLOPs",
            "budget": self.budget,
            "uniform_updates": None if self.relative else self.uniform_steps,
            "updates": None if self.relative else self.steps,
            "ledger": ledger.lines(),
            "budget_shares": {
                "online_score": ledger.online_score / self.budget,
                "online_score_and_train": (ledger.online_score + ledger.online_train) / self.budget,
                **{f"{line}_in_run": flops / self.budget for line, flops in ledger.in_run.items()},
            },
            "regimes": {regime: self._regime(regime, total) for regime, total in ledger.regimes().items()},
            "expected_saving": self.expected_saving,
            "size_step": SIZE_STEP,
            "notes": list(self.notes),
        }

    def _regime(self, regime: str, total: float | None) -> dict[str, Any]:
        line: dict[str, Any] = {"total": total, "break_even": self.break_even(regime)}
        if not self.relative:
            # n steps divided by one can come out a rounding error below n.
            line["most_updates"] = math.floor(self.most_updates(regime) * (1 + 1e-12))
        if self.expected_saving is not None:
            largest = self.largest_ratio(regime, self.expected_saving)
            line["largest_ratio"] = largest if math.isfinite(largest) else None
            line["sizes_down"] = sizes_down(self.ratio, largest)
            line["compute_saved"] = 1 - self.total_at(regime, self.expected_saving) / self.uniform_cost
        return line


def sizes_down(ratio: float, largest: float) -> int:
    """Whole scorer sizes, each SIZE_STEP fewer FLOPs, from `ratio` to `largest` or below; 0 where it is there."""
    if ratio <= largest:
        return 0
    return math.ceil(math.log(ratio / largest) / math.log(SIZE_STEP) - 1e-9)
