"""Plots of a comparison, as SVG (with text as text) and PNG. Only matplotlib's object API is used: no global state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from ..datasets.writing import whole_file, write_whole
from ..ledger import BASELINE, LINES
from ..scoring.policies import POLICIES
from ..units import format_flops
from .content import COSTS, Analysis, Comparison, Point, Selected
from .verdict import quality_name

# Colours of policies that have none.
SPARE = ("#332288", "#117733", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P")
LEDGER_COLOURS = ("#4d4d4d", "#e69f00", "#f0c75e", "#56b4e9", "#a8d5f2")
STYLE: Any = {  # matplotlib types its keys one by one
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    # A fixed salt makes ids, and so the file, reproducible.
    "svg.hashsalt": "curate",
}
MEASURES = {"online_loss": "online loss", "reference_loss": "reference loss", "score": "score"}


def draw(comparison: Comparison, found: Sequence[Point], folder: Path) -> dict[str, str]:
    """Write NAME.svg and NAME.png of every plot into `folder`; returns the SVG's text by name.

    A plot without data (no policy that selects, no clean labels) is left out.
    """
    analysis, policies = comparison.analysis, comparison.analysis.policies
    plots: dict[str, Callable[[], Figure | None]] = {
        "quality_over_updates": lambda: _quality(analysis, found, "learner_updates"),
        "quality_over_flops": lambda: _quality(analysis, found, "total_flops"),
        "quality_over_seconds": lambda: _quality(analysis, found, "seconds"),
        "ledger": lambda: _ledger(analysis),
        "wrong_labels": lambda: _wrong_labels(comparison.selection, policies),
        "distributions": lambda: _distributions(comparison.selection, policies),
    }
    return draw_all(plots, folder)


def draw_all(plots: Mapping[str, Callable[[], Figure | None]], folder: Path) -> dict[str, str]:
    """Write NAME.svg and NAME.png of each figure into `folder`; returns the SVG's text by name. None draws nothing."""
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, plot in plots.items():
            figure = plot()
            for suffix in ("svg", "png"):
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
            if figure is None:
                continue
            FigureCanvasAgg(figure)
            drawn[name] = svg_text(figure)
            write_whole(folder / f"{name}.svg", drawn[name].encode())
            with whole_file(folder / f"{name}.png") as partial:
                figure.savefig(partial, format="png", dpi=160, metadata={"Software": None})
    return drawn


def svg_text(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()


def colour(policy: str, policies: Sequence[str]) -> str:
    """A policy's own colour, or a spare one if it has none."""
    if policy in POLICIES:
        return POLICIES[policy].colour
    unknown = [p for p in policies if p not in POLICIES]
    return SPARE[unknown.index(policy) % len(SPARE)]


def _quality(analysis: Analysis, found: Sequence[Point], cost: str) -> Figure:
    figure = Figure(figsize=(5.0, 3.9), layout="constrained")
    axes = figure.add_subplot()
    for i, (policy, curve) in enumerate(analysis.curves.items()):
        shade = colour(policy, analysis.policies)
        xs = [rung.costs[cost].mean for rung in curve]
        low, high = [rung.quality.min for rung in curve], [rung.quality.max for rung in curve]
        axes.fill_between(xs, low, high, color=shade, alpha=0.15, linewidth=0)
        axes.plot(
            xs,
            [rung.quality.mean for rung in curve],
            color=shade,
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linestyle="--" if policy == BASELINE else "-",
            label=policy,
            zorder=3,
        )
        mine = [p for p in found if p.policy == policy]
        axes.scatter(
            [p.costs[cost] for p in mine], [p.quality for p in mine], s=7, color=shade, alpha=0.45, linewidths=0
        )
    costs = [p.costs[cost] for p in found]
    axes.set_xscale("log")
    narrow = max(costs) < 3 * min(costs)
    axes.xaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: format_flops(x) if cost == "total_flops" else f"{x:,.6g}")
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_xlabel(f"{COSTS[cost]} (log scale)")
    axes.set_ylabel(quality_name(analysis.quality))
    _legend(figure, axes, columns=3)
    return figure


def _ledger(analysis: Analysis) -> Figure:
    budget = analysis.budget_flops
    rungs = {policy: analysis.rung(policy, budget) for policy in analysis.policies}
    shown = {policy: rung for policy, rung in rungs.items() if rung is not None}
    figure = Figure(figsize=(7.2, 1.7 + 0.42 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    start = dict.fromkeys(shown, 0.0)
    for (line, name), shade in zip(LINES.items(), LEDGER_COLOURS, strict=True):
        spreads = [rung.lines[line] for rung in shown.values()]
        widths = [spread.mean if spread else 0.0 for spread in spreads]
        bars = axes.barh(list(shown), widths, left=list(start.values()), height=0.62, color=shade, label=name)
        bars.set_label(name)
        start = {policy: start[policy] + width for policy, width in zip(shown, widths, strict=True)}
    for policy, rung in shown.items():
        if rung.lines["reference_train"] is None:
            axes.annotate(
                "+ reference train, not known",
                (start[policy], policy),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color="#555555",
            )
    axes.axvline(budget, color="#222222", linewidth=1, linestyle=":")
    axes.annotate("1x", (budget, 1), (3, 1), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(AutoLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_flops(x)))
    axes.set_xlabel("FLOPs of a run at 1x")
    _legend(figure, axes, columns=3)
    return figure


def _wrong_labels(selection: Sequence[Selected], policies: Sequence[str]) -> Figure | None:
    known = [(one.policy, one.wrong_labels) for one in selection if one.wrong_labels]
    if not known:
        return None
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    widest = max((wrong for _, wrong in known), key=lambda wrong: wrong.step[-1])
    axes.plot(widest.step, widest.all, color=POLICIES[BASELINE].colour, linestyle="--", label="whole super-batch")
    for policy, wrong in known:
        axes.plot(
            wrong.step,
            wrong.selected,
            color=colour(policy, policies),
            marker=MARKERS[policies.index(policy) % len(MARKERS)],
            markersize=4,
            label=policy,
        )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_xlabel("learner updates")
    axes.set_ylabel("wrong labels among the selected")
    _legend(figure, axes, columns=3)
    return figure


def _distributions(selection: Sequence[Selected], policies: Sequence[str]) -> Figure | None:
    known = [one for one in selection if any(one.distributions.values())]
    if not known:
        return None
    figure = Figure(figsize=(8.0, 0.9 + 1.35 * len(known)), layout="constrained")
    grid = figure.subplots(len(known), len(MEASURES), sharex="col", squeeze=False)
    for row, one in zip(grid, known, strict=True):
        shade = colour(one.policy, policies)
        for axes, measure in zip(row, MEASURES, strict=True):
            axes.grid(visible=False)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            histogram = one.distributions[measure]
            if histogram is None:
                axes.text(0.5, 0.5, "not used", transform=axes.transAxes, ha="center", color="#777777")
                continue
            axes.stairs(histogram.rest, histogram.edges, fill=True, color="#cfcfcf")
            axes.stairs(histogram.selected, histogram.edges, color=shade, linewidth=1.8)
            axes.set_ylim(bottom=0)
        row[0].set_ylabel(one.policy, color=shade, rotation=0, ha="right", va="center", labelpad=8)
    for axes, name in zip(grid[-1], MEASURES.values(), strict=True):
        axes.set_xlabel(name)
    handles = [
        Patch(facecolor="none", edgecolor="#222222", linewidth=1.8, label="selected"),
        Patch(facecolor="#cfcfcf", label="not selected"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, columnspacing=1.4, handlelength=2.2)
