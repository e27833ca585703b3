"""The result of a probe: the saving that its short runs measured, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..ledger import BASELINE, REGIMES
from ..units import accuracy, percent
from .analysis import analyse
from .comparison import Compared
from .content import Spread
from .interval import SeededSaving
from .points import read_points
from .verdict import quality_name


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The saving in learner updates at `budget` FLOPs per run, and the FLOPs that all runs spent. `measure` names the quality.

    `others` have the quality and the saving of every policy that was probed beside `policy`; `curated` the quality of uniform
    where it trained on the curated examples, by how. `reference` is the quality of the reference, None where it is not known.
    """

    policy: str
    measure: str
    budget: float
    spent: float
    seeds: int
    quality: Mapping[str, Spread]
    saving: SeededSaving
    others: Mapping[str, tuple[Spread, SeededSaving]] = field(default_factory=dict)
    curated: Mapping[str, Spread] = field(default_factory=dict)
    reference: float | None = None

    @property
    def reached(self) -> dict[str, Spread]:
        """The quality of every arm at the same FLOPs, the best first."""
        found = {**self.quality, **{name: quality for name, (quality, _) in self.others.items()}, **self.curated}
        return dict(sorted(found.items(), key=lambda item: -item[1].mean))

    @property
    def expected_saving(self) -> float | None:
        """The saving to plan with: the measured share, or its lower bound; None where it is not a gain."""
        return self.saving.share if self.saving.gained else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_probe(folder: str, compared: Compared, curated: Mapping[str, Sequence[str]] | None = None) -> Probe:
    """From the runs under `folder` that `compared` names; `curated` names those on curated examples, by how they train on them.
    Raises RunError where a run's files are damaged."""
    found = read_points([Path(folder, "runs", name) for name in compared.runs], compared.quality)
    analysis = analyse(found, compared.quality, compared.budget_flops)
    named = compared.headline_policy or analysis.savings[0].policy
    row = next(row for row in analysis.savings if row.policy == named)
    uniform = analysis.rung(BASELINE, row.budget_flops)
    assert uniform is not None, "the probe ran uniform at every budget of the policy"
    more = {
        arm: read_points([Path(folder, "runs", name) for name in names], compared.quality)
        for arm, names in (curated or {}).items()
    }
    found += [point for points in more.values() for point in points]
    return Probe(
        policy=row.policy,
        measure=compared.quality,
        budget=row.budget_flops,
        spent=sum(point.costs["total_flops"] for point in found),
        seeds=len(analysis.seeds),
        quality={BASELINE: uniform.quality, row.policy: row.quality},
        saving=row.learner_updates,
        others={r.policy: (r.quality, r.learner_updates) for r in analysis.savings if r is not row},
        reference=next((point.reference for point in found if point.reference is not None), None),
        curated={arm: Spread.of([point.quality for point in points]) for arm, points in more.items()},
    )


def probe_lines(probe: Probe, plan: Mapping[str, Any]) -> list[str]:
    """The probe in sentences, and in which regimes its saving is enough for the plan."""
    saving, quality = probe.saving, probe.quality
    lines = [
        f"Probe at {percent(probe.budget / plan['budget'])} of the budget, n = {probe.seeds} seeds, "
        f"{percent(probe.spent / plan['budget'])} of it spent: {quality_name(probe.measure)} "
        f"{accuracy(quality[probe.policy].mean)} with {probe.policy}, {accuracy(quality[BASELINE].mean)} with {BASELINE};",
        f"{saving.spoken('fewer', 'more')} learner updates to the same quality ({saving.between}).",
        *(
            f"{name} at the same FLOPs: {accuracy(reached.mean)}; {other.spoken('fewer', 'more')} ({other.between})."
            for name, (reached, other) in probe.others.items()
        ),
        *(f"{BASELINE}, {arm}, at the same FLOPs: {accuracy(reached.mean)}." for arm, reached in probe.curated.items()),
        *(_which(probe) if probe.curated else ()),
        *_beside_reference(probe),
    ]
    if not saving.gained:
        return [*lines, "Nothing was saved: selection would cost more for the same quality, or as much at best."]
    gains = [name for key, name in REGIMES.items() if plan["regimes"][key]["compute_saved"] > 0]
    kept = f"pays off in the regimes: {', '.join(gains)}" if gains else "pays off in no regime"
    if saving.shows != "gain":
        why = "one seed gives no interval" if saving.interval is None else "the interval does not exclude 0"
        lines.append(f"No saving shown: {why}; more --seeds or a larger --probe would tell more.")
    return [*lines, f"If the measured saving holds at the full budget, selection {kept}."]


def _beside_reference(probe: Probe) -> list[str]:
    """How far the learner is from the reference: choosing gains little once it has passed it."""
    if probe.reference is None:
        return []
    reached = probe.quality[BASELINE].mean
    named = f"The reference has {accuracy(probe.reference)} on the same test split"
    if reached > probe.reference:
        return [f"{named}, less than {BASELINE} here: at the full budget choosing by it is likely to gain nothing."]
    return [f"{named}. Where {BASELINE} passes that before the budget ends, expect less of choosing than here."]


def _which(probe: Probe) -> list[str]:
    """Which arm was best, and whether seeds alone could have put another there."""
    (best, reached), *others = probe.reached.items()
    level = [name for name, other in others if other.max >= reached.min]
    named = f"{BASELINE}, {best}" if best in probe.curated else best
    if probe.seeds < 2:
        return [f"Best here: {named}, by one seed."]
    if level:
        return [f"Best here: {named}; seeds overlap with {', '.join(level)}."]
    return [f"Best here: {named}, with every seed ahead of all others."]
