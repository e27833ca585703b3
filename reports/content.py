"""The content of a comparison as types. Their `to_dict` is what comparison.json and points.parquet hold."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .interval import SeededSaving

# The costs at which policies are compared; `total_flops` is what the budget counts.
COSTS = {"learner_updates": "learner updates", "total_flops": "total FLOPs", "seconds": "seconds"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One finished run: its quality, and its cost by every measure.

    `costs` has the keys of COSTS: `total_flops` is learner train + online score + online train (the foundation regime),
    `seconds` is training time without evaluation and compiling. `lines` and `regimes` are the ledger's, None where not known.
    `reference` is the quality of the reference behind the run's scores, None where there is none or it is not known.
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
    reference: float | None = None

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
    """Mean, least and greatest value of a measure over n seeds."""

    mean: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), min(values), max(values), len(values))

    @classmethod
    def of_known(cls, values: Sequence[float | None]) -> Spread | None:
        """None if any of the values is None."""
        known = [value for value in values if value is not None]
        return cls.of(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class SpreadAt(Spread):
    """Quality at a given cost; `interpolated` if no run of the policy has exactly that cost."""

    interpolated: bool


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One policy at one budget: the spread over seeds of quality and of every cost."""

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
    """Every policy's quality at `at`, the cost of one of uniform's budgets. Policies without runs around it are left out."""

    budget_flops: float
    at: float
    quality: Mapping[str, SpreadAt]

    def to_dict(self, cost: str) -> dict[str, Any]:
        quality = {policy: asdict(spread) for policy, spread in self.quality.items()}
        return {"budget_flops": self.budget_flops, cost: self.at, "quality": quality}


@dataclass(frozen=True, kw_only=True)
class SavingsRow:
    """What one policy at one budget saves: in learner updates, and in total compute under every regime."""

    policy: str
    budget_flops: float
    quality: Spread
    learner_updates: SeededSaving
    total_compute: Mapping[str, SeededSaving | None]

    @property
    def foundation(self) -> SeededSaving:
        """The saving of total compute in the foundation regime, whose cost is always known."""
        saving = self.total_compute["foundation"]
        assert saving is not None
        return saving


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that is computed from the points. `quality` names the measure; `budget_flops` is the budget of 1x.

    `headline_budget` and `headline_policy` were named before the runs; no policy where only uniform was run.
    """

    quality: str
    budget_flops: float
    headline_budget: float
    headline_policy: str | None
    seeds: tuple[int, ...]
    curves: Mapping[str, tuple[Rung, ...]]
    equal: Mapping[str, tuple[EqualRow, ...]]
    savings: tuple[SavingsRow, ...]

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(self.curves)

    @property
    def headline(self) -> SavingsRow | None:
        """The row of the policy and the budget that were named before the runs, whatever the other rows say."""
        named = (row for row in self.at_headline if row.policy == self.headline_policy)
        return next(named, None)

    @property
    def at_headline(self) -> list[SavingsRow]:
        """The rows of all policies at the headline's budget."""
        return [row for row in self.savings if row.budget_flops == self.headline_budget]

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
            "headline_budget": self.headline_budget,
            "headline_policy": self.headline_policy,
            "headline": headline and asdict(headline),
        }


@dataclass(frozen=True, kw_only=True)
class WrongLabels:
    """Share of wrong labels among the `selected` and among `all` examples of the super-batch, by bin of steps."""

    step: tuple[float, ...]
    selected: tuple[float, ...]
    all: tuple[float, ...]
    n_selected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Shares of the selected and of the rest by bin. All policies have the same n + 1 `edges`."""

    edges: tuple[float, ...]
    selected: tuple[float, ...]
    n_selected: int
    rest: tuple[float, ...]
    n_rest: int


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What one run selected. `wrong_labels` is None where clean labels are not known, a distribution is None where the
    policy has no such loss."""

    policy: str
    run: str
    wrong_labels: WrongLabels | None
    distributions: Mapping[str, Histogram | None]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Hardware, precision and versions of the runs; all of them, where runs differ."""

    hardware: tuple[str, ...]
    precision: tuple[str, ...]
    versions: Mapping[str, str]
    operators_not_counted: tuple[str, ...]
    description: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The content of comparison.json.

    `learning_rates` are those of every budget, as multiples of 1x. `search` has, by multiple, what uniform reached with
    every rate that was tried, as (rate, quality) pairs, and `searched_on` the examples that this was measured on.
    """

    analysis: Analysis
    dataset: str
    learning_rates: Mapping[float, float]
    search: Mapping[float, Sequence[tuple[float, float]]]
    searched_on: str
    settings: Mapping[str, object]
    selection: tuple[Selected, ...]
    made: Made
    verdict: str

    @property
    def edges(self) -> list[str]:
        """What to say of every search whose best rate is the first or the last one tried: a better one may be beyond it."""
        said = []
        for multiple, tried in self.search.items():
            best, rates = max(tried, key=lambda pair: pair[1])[0], [rate for rate, _ in tried]
            if len(rates) > 1 and best in (min(rates), max(rates)):
                end = "lowest" if best == min(rates) else "highest"
                said.append(f"at {multiple:g}x the best learning rate, {best:g}, is the {end} tried; widen --search-lr")
        return said

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.analysis.to_dict(),
            "learning_rate": self.learning_rates[1.0],
            "learning_rates": {f"{multiple:g}x": rate for multiple, rate in self.learning_rates.items()},
            "search": self.search.get(1.0, ()),
            "searches": {f"{multiple:g}x": tried for multiple, tried in self.search.items()},
            "searched_on": self.searched_on,
            "settings": self.settings,
            "selection": [asdict(one) for one in self.selection],
            "made": asdict(self.made),
            "verdict": self.verdict,
        }
