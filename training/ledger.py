"""The compute ledger: five lines of FLOPs, four regimes of what to count."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """FLOPs of one step: training the learner on b, scoring B with the online model, training that on b."""

    learner_train: float
    online_score: float = 0.0
    online_train: float = 0.0

    @property
    def total(self) -> float:
        return self.learner_train + self.online_score + self.online_train


@dataclass(kw_only=True)
class Ledger:
    """FLOPs (2 x multiply-adds) of a run by line.

    `reference_score` is the cost of the whole score table, paid once and shared by every run that reads it;
    `reference_train` is None where nobody recorded it. `outside` holds what no budget counts: evaluation, and the
    re-scoring that verifies the join.
    """

    learner_train: float = 0.0
    online_score: float = 0.0
    online_train: float = 0.0
    reference_score: float = 0.0
    reference_train: float | None = 0.0
    outside: dict[str, float] = field(default_factory=dict)

    def add_step(self, cost: StepCost) -> None:
        self.learner_train += cost.learner_train
        self.online_score += cost.online_score
        self.online_train += cost.online_train

    def add_outside(self, line: str, flops: float) -> None:
        self.outside[line] = self.outside.get(line, 0.0) + flops

    @property
    def spent(self) -> float:
        """What the budget counts: everything that this run itself computed to train."""
        return self.learner_train + self.online_score + self.online_train

    def lines(self) -> dict[str, float | None]:
        return {k: v for k, v in asdict(self).items() if k != "outside"}

    def regimes(self) -> dict[str, float | None]:
        """Total FLOPs under each regime; a figure without its regime says nothing."""
        foundation = self.spent
        pretrained = foundation + self.reference_score
        return {
            "fully_amortised": self.learner_train,
            "foundation": foundation,
            "pretrained_reference": pretrained,
            "nothing_amortised": None if self.reference_train is None else pretrained + self.reference_train,
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
