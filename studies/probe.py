"""`curate plan --probe`: a few short, complete runs, uniform and other policies in pairs, before a budget is spent."""

from __future__ import annotations

from ..datasets.spec import Config
from ..units import Report, format_flops
from .comparison import Compared, compare_runs, planned
from .options import ProbeOptions


def run_probe(options: ProbeOptions, *, config: Config, report: Report = print) -> Compared:
    """Make what is missing of the probing runs. Every one is complete: its learning rate ends at its own budget.

    Raises CurateError as `compare_runs` does.
    """
    comparison = options.comparison
    cost = sum(run.budget.budget_flops or 0.0 for run in planned(comparison, dict.fromkeys(comparison.multiples, 0.0)))
    assert options.plan.budget_flops
    report(f"probe: runs of {format_flops(cost)} in all, {cost / options.plan.budget_flops:.1%} of the budget")
    return compare_runs(comparison, config=config, report=report)
