"""From a comparison's points to quality at equal cost and savings at equal quality. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import RunError
from ..ledger import BASELINE, LINES, REGIMES
from .content import COSTS, Analysis, EqualRow, Point, Rung, SavingsRow, Spread, SpreadAt
from .interval import SeededSaving, saving_interval
from .savings import quality_at, saving

Curves = Mapping[str, tuple[Rung, ...]]


def analyse(
    found: Sequence[Point],
    quality: str,
    budget_flops: float,
    *,
    headline_budget: float | None = None,
    headline_policy: str | None = None,
) -> Analysis:
    """Analyse the points of one comparison. `quality` names the measure, `budget_flops` is the budget of 1x.

    The headline is read at `headline_budget`, 1x unless given, for `headline_policy`, unless given the first that is not
    uniform. Savings compare with uniform's mean quality at its budgets; their intervals pair both sides by seed. Raises
    RunError if there is no run of uniform.
    """
    curves = {
        policy: _curve([p for p in found if p.policy == policy]) for policy in dict.fromkeys(p.policy for p in found)
    }
    if BASELINE not in curves:
        raise RunError(f"no run of policy {BASELINE} among the points; compare again with {BASELINE} among --policies")
    return Analysis(
        quality=quality,
        budget_flops=budget_flops,
        headline_budget=budget_flops if headline_budget is None else headline_budget,
        headline_policy=headline_policy or next((policy for policy in curves if policy != BASELINE), None),
        seeds=tuple(sorted({p.seed for p in found})),
        curves=curves,
        equal={cost: _equal(curves, cost) for cost in COSTS},
        savings=_savings(found, curves),
    )


def _curve(found: Sequence[Point]) -> tuple[Rung, ...]:
    """One policy's rungs, by ascending budget."""
    return tuple(
        _rung(budget, [p for p in found if p.budget_flops == budget])
        for budget in sorted({p.budget_flops for p in found})
    )


def _rung(budget: float, same: Sequence[Point]) -> Rung:
    return Rung(
        budget_flops=budget,
        quality=Spread.of([p.quality for p in same]),
        costs={cost: Spread.of([p.costs[cost] for p in same]) for cost in COSTS},
        lines={line: Spread.of_known([p.lines[line] for p in same]) for line in LINES},
        regimes={name: Spread.of_known([p.regimes[name] for p in same]) for name in REGIMES},
    )


def _qualities(curve: Sequence[Rung]) -> list[float]:
    return [rung.quality.mean for rung in curve]


def _costs(curve: Sequence[Rung], cost: str) -> list[float]:
    return [rung.costs[cost].mean for rung in curve]


def _equal(curves: Curves, cost: str) -> tuple[EqualRow, ...]:
    rows = []
    for rung in curves[BASELINE]:
        at = rung.costs[cost].mean
        quality = {policy: _quality_at(policy, curve, rung, cost) for policy, curve in curves.items()}
        known = {policy: spread for policy, spread in quality.items() if spread is not None}
        rows.append(EqualRow(budget_flops=rung.budget_flops, at=at, quality=known))
    return tuple(rows)


def _quality_at(policy: str, curve: Sequence[Rung], rung: Rung, cost: str) -> SpreadAt | None:
    """A policy's quality at the cost of uniform's `rung`; None where that is outside the range of its own rungs."""
    same = next((r for r in curve if cost == "total_flops" and r.budget_flops == rung.budget_flops), None)
    if policy == BASELINE or same is not None:
        spread = (same or rung).quality
        return SpreadAt(spread.mean, spread.min, spread.max, spread.n, interpolated=False)
    xs, at = _costs(curve, cost), rung.costs[cost].mean
    mean = quality_at(xs, _qualities(curve), at)
    low = quality_at(xs, [r.quality.min for r in curve], at)
    high = quality_at(xs, [r.quality.max for r in curve], at)
    if mean is None or low is None or high is None:
        return None
    return SpreadAt(mean, low, high, min(r.quality.n for r in curve), interpolated=True)


def _savings(found: Sequence[Point], curves: Curves) -> tuple[SavingsRow, ...]:
    """One row for each policy and budget; no rows where uniform has a single budget."""
    if len(curves[BASELINE]) < 2:
        return ()
    return tuple(
        _savings_row(policy, rung, found, curves[BASELINE])
        for policy, curve in curves.items()
        if policy != BASELINE
        for rung in curve
    )


def _savings_row(policy: str, rung: Rung, found: Sequence[Point], ladder: Sequence[Rung]) -> SavingsRow:
    quality = {(p.policy, p.budget_flops, p.seed): p.quality for p in found}

    def of_seed(seed: int) -> tuple[list[float | None], float | None]:
        own_ladder = [quality.get((BASELINE, step.budget_flops, seed)) for step in ladder]
        return own_ladder, quality.get((policy, rung.budget_flops, seed))

    pairs = [of_seed(seed) for seed in sorted({p.seed for p in found})]
    whole = [(steps, q) for steps, q in pairs if q is not None and None not in steps]

    def saved(cost: float, costs: Sequence[float]) -> SeededSaving:
        mean = saving(cost, costs, _qualities(ladder), rung.quality.mean)
        interval = saving_interval(cost, costs, [steps for steps, _ in whole], [q for _, q in whole])  # type: ignore[misc]
        return SeededSaving(mean.share, mean.where, interval)

    flops = [_learner_train(rung) for rung in ladder]
    return SavingsRow(
        policy=policy,
        budget_flops=rung.budget_flops,
        quality=rung.quality,
        learner_updates=saved(rung.costs["learner_updates"].mean, _costs(ladder, "learner_updates")),
        total_compute={name: None if cost is None else saved(cost.mean, flops) for name, cost in rung.regimes.items()},
    )


def _learner_train(rung: Rung) -> float:
    spread = rung.lines["learner_train"]
    assert spread is not None, "only the reference's cost can be unknown"
    return spread.mean
