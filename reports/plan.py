"""What `curate plan` prints: the five ledger lines, the four regimes, and the saving that each regime needs."""

from __future__ import annotations

import json
import sys
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ..ledger import BASELINE, REGIMES
from ..units import counted, format_duration, format_flops
from .formats import check_format
from .probe import Probe, probe_lines

# What each regime counts in addition to the one before it.
COUNTS = ("learner train", "online score and online train", "reference score", "reference train")


def write_plan(
    plan: dict[str, Any],
    format: str = "table",
    file: IO[str] | None = None,
    *,
    probe: Probe | None = None,
    measured: dict[str, Any] | None = None,
) -> None:
    """Print a plan (`Plan.to_dict()`), what a probe measured, and `measured`, what a run takes here, as tables or as one
    JSON object.

    Raises SpecError for another format.
    """
    file = file or sys.stdout
    check_format(format)
    if format == "json":
        content = plan if probe is None else {**plan, "probe": probe.to_dict()}
        content = content if measured is None else {**content, "measured": measured}
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
        return
    console = Console(file=file, highlight=False, soft_wrap=True)
    console.print(_title(plan))
    _print(console, _ledger(plan))
    shares = plan["budget_shares"]
    console.print(
        f"Scoring takes {_percent(shares['online_score'])} of the budget, "
        f"{_percent(shares['online_score_and_train'])} with training the online model.\n" + _reference(plan)
    )
    _print(console, _regimes(plan))
    console.print(_counts())
    for line in measured_lines(measured) if measured is not None else []:
        console.print(escape(line))
    for line in (probe_lines(probe, plan) if probe is not None else []) + _explanation(plan):
        console.print(line)


def measured_lines(measured: dict[str, Any]) -> list[str]:
    """What a planned run takes on this machine, in sentences."""
    longest_first = sorted(measured["stages"].items(), key=lambda item: -item[1])
    stages = ", ".join(f"{name} {_short(seconds)}" for name, seconds in longest_first)
    cores, wanted = measured["cores"], measured["cores_wanted"]
    reading = (
        f"Reading and decoding alone: {measured['read_per_second']:,.0f} examples/s on {counted(cores, 'core')}, "
        f"{_short(measured['read_seconds'])} for a step's {measured['super_batch']:,} examples."
    )
    if measured["binds"] == "reading":
        bottleneck = (
            f"Reading is the bottleneck: {counted(wanted, 'such core')} would keep up, if all of them only read."
        )
    else:
        bottleneck = (
            f"The bottleneck is the stage '{measured['binds']}'; reading would keep up with {counted(wanted, 'core')}."
        )
    return [
        f"\nMeasured here, on {measured['device']}, with --batch-size {measured['batch_size']} (super-batch "
        f"{measured['super_batch']:,}): {_short(measured['step_seconds'])} a step ({stages}), so "
        f"{format_duration(measured['seconds'])} for {measured['steps']:,} steps, without evaluation.",
        reading,
        bottleneck,
        f"Disk: up to {measured['disk_bytes'] / 1e9:.2g} GB. Memory: {measured['memory_bytes'] / 1e9:.2g} GB at most so far.",
    ]


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _title(plan: dict[str, Any]) -> str:
    r, f = plan["ratio"], plan["filter_ratio"]
    what = f"[bold]F_online / F_learner = {_one_over(r)}, filter ratio {f:g} (the share dropped)[/bold]\n"
    if plan["updates"] is None:
        return what + f"The budget is the cost of a {BASELINE} run; every figure is a share of it."
    return what + (
        f"A budget of {format_flops(plan['budget'])} pays for {plan['updates']:,} learner updates with selection, "
        f"{plan['uniform_updates']:,} drawn uniformly."
    )


def _print(console: Console, table: Table) -> None:
    """Whole, however narrow the terminal is. At 80 columns it fits."""
    console.width = max(console.width, Measurement.get(console, console.options.update(width=1000), table).maximum)
    console.print(table)


def _table(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _ledger(plan: dict[str, Any]) -> Table:
    table = _table("The selecting run's ledger")
    table.add_column("line")
    if plan["updates"] is not None:
        table.add_column("FLOPs", justify="right")
    table.add_column("of the budget", justify="right")
    for line, flops in plan["ledger"].items():
        mark = " *" if line.startswith("reference") and f"{line}_in_run" not in plan["budget_shares"] else ""
        cells = [format_flops(flops)] if plan["updates"] is not None else []
        table.add_row(line.replace("_", " ") + mark, *cells, _percent(flops / plan["budget"]))
    return table


def _regimes(plan: dict[str, Any]) -> Table:
    table = _table("Updates that must be saved to break even")
    table.add_column("regime")
    table.add_column("total,\nof the\nbudget", justify="right")
    table.add_column("saved to\nbreak\neven", justify="right")
    if plan["updates"] is not None:
        table.add_column("so at\nmost\nupdates", justify="right")
    if plan["expected_saving"] is not None:
        table.add_column(f"compute\nsaved at\n{_percent(plan['expected_saving'])}", justify="right")
        table.add_column("largest\nratio", justify="right")
        table.add_column("sizes\ndown", justify="right")
    for name, label in REGIMES.items():
        regime = plan["regimes"][name]
        cells = [_percent(regime["total"] / plan["budget"]), _percent(regime["break_even"])]
        if plan["updates"] is not None:
            cells.append(f"{regime['most_updates']:,}")
        if plan["expected_saving"] is not None:
            largest = regime["largest_ratio"]
            cells += [
                _percent(regime["compute_saved"]),
                "any" if largest is None else _one_over(largest),
                str(regime["sizes_down"]),
            ]
        table.add_row(label, *cells)
    return table


def _counts() -> str:
    first, *others = (f"{label} {{}}{counts}" for label, counts in zip(REGIMES.values(), COUNTS, strict=True))
    return f"{first.format('counts ')}; {', '.join(other.format('also ') for other in others)}.".capitalize()


def _explanation(plan: dict[str, Any]) -> list[str]:
    lines = []
    if plan["expected_saving"] is not None:
        lines.append(
            f"Largest ratio: the largest scorer with which {_percent(plan['expected_saving'])} fewer learner updates "
            "still break even, online model and reference shrunk alike.\n"
            f"Sizes down: how many from this online model; one size is a factor of {plan['size_step']:.1f} in FLOPs, as "
            "between ViT-B (1/3.5 of ViT-L), S (1/13) and Ti (1/49)."
        )
    return lines + [f"[dim]{escape(note)}[/dim]" for note in plan["notes"]]


def _reference(plan: dict[str, Any]) -> str:
    """Who pays for it."""
    in_run = [share for name, share in plan["budget_shares"].items() if name.endswith("_in_run")]
    if in_run:
        return f"The reference takes {_percent(sum(in_run))} more: it trains in this run, and serves no other."
    return f"* outside the budget; {_shared(plan['runs'])}"


def _shared(runs: int) -> str:
    return f"shared by {runs:,} runs" if runs > 1 else "this run alone pays for it (--runs 1)"


def _percent(share: float | None) -> str:
    """`3.3 %`; None, which no saving reaches, is `never`."""
    return "never" if share is None else f"{100 * share:.1f} %"


def _one_over(ratio: float) -> str:
    return f"1/{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}"
