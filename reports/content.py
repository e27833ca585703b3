"""What a comparison says, as types. Their `to_dict` is what comparison.json and points.parquet hold."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .savings import SeededSaving

# The costs at which policies are compared; `total_flops` is what the budget counts.
COSTS = {"learner_updates": "learner updates", "total_flops": "total FLOPs", "seconds": "seconds"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One finished run: what it reached, and what that cost by every measure.

    `costs` are COSTS: `total_flops` is learner train + online score + online train (the foundation regime), `seconds`
    are of training, without evaluation. `lines` are the ledger's; a line or a regime that nobody knows is None.
    """

    run: str
    policy: str
    budget_flops: float
    seed: int
    quality: float
    costs: Mapping[str, float]
    filter_ratio: float
    lr: float
    lines: Mapping[str, float | None]
    regimes: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "policy": self.policy,
            "budget_flops": self.budget_flops,
            "seed": self.seed,
            "quality": self.quality,
            **self.costs,
            "filter_ratio": self.filter_ratio,
            "lr": self.lr,
            **self.lines,
            **{f"regime_{name}": flops for name, flops in self.regimes.items()},
        }


@dataclass(frozen=True)
class Spread:
    """A measure over the n seeds of one point."""

    mean: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), min(values), max(values), len(values))

    @classmethod
    def of_known(cls, values: Sequence[float | None]) -> Spread | None:
        """None where any of the values is."""
        known = [value for value in values if value is not None]
        return cls.of(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class SpreadAt(Spread):
    """Quality at a cost; `interpolated` where no run of the policy cost just that."""

    interpolated: bool


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One policy at one budget: spreads over seeds of quality and of every cost."""

    budget_flops: float
    quality: Spread
    costs: Mapping[str, Spread]
    lines: Mapping[str, Spread | None]
    regimes: Mapping[str, Spread | None]

    def to_dict(self) -> dict[str, Any]:
        regimes = {f"regime_{name}": spread for name, spread in self.regimes.items()}
        spreads = {"quality": self.quality, **self.costs, **self.lines, **regimes}
        return {"budget_flops": self.budget_flops, **{name: s and asdict(s) for name, s in spreads.items()}}


@dataclass(frozen=True, kw_only=True)
class EqualRow:
    """Every policy's quality at the cost `at` of one of uniform's budgets; a policy that never cost that is left out."""

    budget_flops: float
    at: float
    quality: Mapping[str, SpreadAt]

    def to_dict(self, cost: str) -> dict[str, Any]:
        quality = {policy: asdict(spread) for policy, spread in self.quality.items()}
        return {"budget_flops": self.budget_flops, cost: self.at, "quality": quality}


@dataclass(frozen=True, kw_only=True)
class SavingsRow:
    """What one policy at one budget saved: in learner updates, and in total compute under every regime."""

    policy: str
    budget_flops: float
    quality: Spread
    learner_updates: SeededSaving
    total_compute: Mapping[str, SeededSaving | None]

    @property
    def foundation(self) -> SeededSaving:
        """In the regime that the budget counts, whose cost is always known."""
        saving = self.total_compute["foundation"]
        assert saving is not None
        return saving


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All that follows from the points. `quality` names the measure; `budget_flops` is what 1x stands for."""

    quality: str
    budget_flops: float
    seeds: tuple[int, ...]
    curves: Mapping[str, tuple[Rung, ...]]
    equal: Mapping[str, tuple[EqualRow, ...]]
    savings: tuple[SavingsRow, ...]

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(self.curves)

    @property
    def headline(self) -> SavingsRow | None:
        """The policy and budget of the largest saving of total compute in the foundation regime, be it a loss.

        "More than" counts as what it is more than; "at most" only where nothing else is known.
        """
        known = [row for row in self.savings if row.foundation.where != "below"]
        return max(known or self.savings, key=lambda row: row.foundation.share, default=None)

    def rung(self, policy: str, budget: float) -> Rung | None:
        return next((rung for rung in self.curves[policy] if rung.budget_flops == budget), None)

    def multiple(self, budget: float) -> str:
        """A budget as a multiple of 1x."""
        return f"{budget / self.budget_flops:g}x"

    def to_dict(self) -> dict[str, Any]:
        headline = self.headline
        return {
            "quality": self.quality,
            "policies": list(self.policies),
            "seeds": list(self.seeds),
            "curves": {policy: [rung.to_dict() for rung in curve] for policy, curve in self.curves.items()},
            "equal": {cost: [row.to_dict(cost) for row in rows] for cost, rows in self.equal.items()},
            "savings": [asdict(row) for row in self.savings],
            "headline": headline and asdict(headline),
        }


@dataclass(frozen=True, kw_only=True)
class WrongLabels:
    """By bins of steps: the share of wrong labels among the `selected` and among `all` of the super-batch."""

    step: tuple[float, ...]
    selected: tuple[float, ...]
    all: tuple[float, ...]
    n_selected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The share of the selected and of the rest in every bin; the n + 1 `edges` are those of all policies."""

    edges: tuple[float, ...]
    selected: tuple[float, ...]
    n_selected: int
    rest: tuple[float, ...]
    n_rest: int


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What one run selected. `wrong_labels` is None where nobody knows clean labels, a distribution where the policy
    has no such loss."""

    policy: str
    run: str
    wrong_labels: WrongLabels | None
    distributions: Mapping[str, Histogram | None]


@dataclass(frozen=True, kw_only=True)
class Made:
    """On what and with what the runs were made; where these differ, all that was seen."""

    hardware: tuple[str, ...]
    precision: tuple[str, ...]
    versions: Mapping[str, str]
    operators_not_counted: tuple[str, ...]
    description: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The content of comparison.json: what the points say, and how they were made. `search` is (rate, quality) pairs."""

    analysis: Analysis
    dataset: str
    learning_rate: float
    search: Sequence[tuple[float, float]]
    settings: Mapping[str, object]
    selection: tuple[Selected, ...]
    made: Made
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.analysis.to_dict(),
            "learning_rate": self.learning_rate,
            "search": self.search,
            "settings": self.settings,
            "selection": [asdict(one) for one in self.selection],
            "made": asdict(self.made),
            "verdict": self.verdict,
        }
