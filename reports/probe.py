"""What a probe says: the saving of its short runs, read as a comparison's, and the price of having asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ledger import BASELINE, REGIMES
from ..units import accuracy, percent
from .comparison import analyse, points
from .verdict import gained, quality_name, spoken, spread


def read_probe(folder: str, compared: Mapping[str, Any]) -> dict[str, Any]:
    """From the runs under `folder` that `compared` names: the saving in learner updates and what was spent.

    `saving` has `share`, `where` (it is read on uniform's ladder, never beyond) and one entry a seed. FLOPs in full.
    Raises RunError where a run's files are damaged.
    """
    found = points([Path(folder, "runs", name) for name in compared["runs"]], compared["quality"])
    content = analyse(found, compared["quality"])
    (row,) = content["savings"]
    uniform = next(r for r in content["curves"][BASELINE] if r["budget_flops"] == row["budget_flops"])
    return {
        "policy": row["policy"],
        "measure": compared["quality"],
        "budget": row["budget_flops"],
        "spent": sum(point["total_flops"] for point in found),
        "seeds": len(content["seeds"]),
        "quality": {BASELINE: uniform["quality"], row["policy"]: row["quality"]},
        "saving": row["learner_updates"],
    }


def expected_saving(probe: Mapping[str, Any]) -> float | None:
    """The saving to plan with: the probe's share, a bound where it lies above the ladder; None where it is no gain."""
    return float(probe["saving"]["share"]) if gained(probe["saving"]) else None


def probe_lines(probe: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """The probe in sentences, beside what the plan needs."""
    saving, policy, quality = probe["saving"], probe["policy"], probe["quality"]
    lines = [
        f"Probe at {percent(probe['budget'] / plan['budget'])} of the budget, n = {probe['seeds']} seeds, "
        f"{percent(probe['spent'] / plan['budget'])} of it spent: {quality_name({'quality': probe['measure']})} "
        f"{accuracy(quality[policy]['mean'])} with {policy}, {accuracy(quality[BASELINE]['mean'])} with {BASELINE};",
        f"{spoken(saving, 'fewer', 'more')} learner updates to the same quality (seeds {spread(saving)}).",
    ]
    if not gained(saving):
        return [*lines, "Nothing was saved: choosing would make this run worse, or as dear at best."]
    gains = [name for key, name in REGIMES.items() if plan["regimes"][key]["compute_saved"] > 0]
    kept = f"pays in the regimes: {', '.join(gains)}" if gains else "pays in no regime"
    return [*lines, f"If that holds to the full budget, choosing {kept}."]
