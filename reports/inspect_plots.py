"""The plots of `curate inspect`: distributions, groups side by side, two references, and a run over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .plots import MARKERS

INK, FAINT = "#3b6ea5", "#a9c3dd"
# Okabe and Ito's: distinct for colour-blind readers.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7a6f00", "#4d4d4d")
LONGEST_NAME = 28


def histogram(edges: Sequence[float], counts: Sequence[int], label: str) -> Figure:
    """One distribution, as counts by bin."""
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(counts, edges, fill=True, color=FAINT)
    axes.stairs(counts, edges, color=INK, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("examples")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def spreads(groups: Mapping[str, Sequence[float]], label: str) -> Figure | None:
    """Of each group five quantiles: a thin line from the first to the last, a thick one between the second and the
    fourth, a dot at the third."""
    if not groups:
        return None
    figure = Figure(figsize=(7.6, 0.9 + 0.27 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    for place, (low, lower, middle, upper, high) in enumerate(groups.values()):
        axes.plot([low, high], [place, place], color=FAINT, linewidth=2.2, solid_capstyle="round")
        axes.plot([lower, upper], [place, place], color=INK, linewidth=6, solid_capstyle="butt", alpha=0.75)
        axes.plot([middle], [place], marker="o", color="white", markeredgecolor="#1b1f24", markersize=5)
    axes.set_yticks(range(len(groups)), [_short(name) for name in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    return figure


def density(
    counts: np.ndarray, edges: tuple[Sequence[float], Sequence[float]], labels: tuple[str, str]
) -> Figure | None:
    """How many examples have each pair of values; `counts` is [x, y]."""
    if not counts.sum():
        return None
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    (x0, *_, x1), (y0, *_, y1) = edges
    shown = axes.imshow(
        np.ma.masked_equal(counts.T, 0),
        origin="lower",
        extent=(x0, x1, y0, y1),
        aspect="auto",
        cmap="viridis_r",
        norm=LogNorm(1, max(2, int(counts.max()))),
        interpolation="nearest",
    )
    low, high = max(x0, y0), min(x1, y1)
    if low < high:
        axes.plot([low, high], [low, high], color="#222222", linewidth=1, linestyle=":")
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)
    axes.grid(visible=False)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    figure.colorbar(shown, label="examples", format=lambda value, _: f"{value:,.0f}")
    return figure


def over_time(steps: Sequence[float], lines: Mapping[str, Sequence[float | None]], label: str, share: bool) -> Figure:
    """A line for each name. With `share`, values are shares of 1."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, values) in enumerate(lines.items()):
        axes.plot(
            steps,
            [np.nan if value is None else value for value in values],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            label=_short(name),
        )
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_ylim(bottom=0)
    axes.set_xlabel("steps")
    axes.set_ylabel(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, columnspacing=1.4)
    return figure


def _short(name: str) -> str:
    # A dollar sign would begin mathematics.
    return (name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "...").replace("$", r"\$")
