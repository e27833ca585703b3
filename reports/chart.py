"""One chart of quality over total FLOPs, for a README. Each line is labelled at its end instead of in a legend."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from ..errors import SpecError
from ..ledger import BASELINE
from ..scoring.policies import POLICIES
from ..units import accuracy, format_flops
from .content import Spread
from .plots import MARKERS, STYLE, svg_text

# Inches; as SVG 768 pixels wide. The labels take the right quarter.
SIZE = (8.0, 4.7)
LEFT, RIGHT, BOTTOM, TOP = 0.075, 0.72, 0.155, 0.9
FONT_SIZE = 11.5
LINE_HEIGHT = 1.25 * FONT_SIZE
LABEL_WIDTH = 23
NO_BREAK = "\N{NO-BREAK SPACE}"
# For arms that are no policy: they differ in what they train on, not in how they select.
COLOURS = ("#332288", "#882255", "#999933")
DASHES = ((0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, kw_only=True)
class ArmPoint:
    """One run. `arm` is its line's label; an arm that is not a policy's name gets its own colour and dash.

    Runs with the same `budget` form one point of the line. `flops` is the run's cost.
    """

    arm: str
    budget: float
    seed: int
    flops: float
    quality: float


def chart(points: Sequence[ArmPoint], *, quality: str, cost: str) -> str:
    """The chart as SVG text, on a white background. `quality` and `cost` are the titles of its axes.

    Lines are means over seeds, bands go from least to greatest, and every seed is a dot. Raises SpecError if there are
    no points.
    """
    if not points:
        raise SpecError("no points to draw; the chart needs at least one finished run")
    with mpl.rc_context({**STYLE, "font.size": FONT_SIZE}):
        figure = Figure(figsize=SIZE, facecolor="white")
        figure.subplots_adjust(left=LEFT, right=RIGHT, bottom=BOTTOM, top=TOP)
        axes = figure.add_subplot()
        arms = list(dict.fromkeys(point.arm for point in points))
        budgets = sorted({p.budget for p in points})
        ends = [
            _line(axes, i, arm, arms, [p for p in points if p.arm == arm], budgets[-1]) for i, arm in enumerate(arms)
        ]
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(budgets))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_flops(x)))
        axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_title(quality, loc="left", fontsize=FONT_SIZE, color="#222222")
        axes.set_xlabel(
            f"{cost} (log scale)\nlines: means over seeds; bands: least to greatest; dots: seeds", loc="left"
        )
        _name_ends(axes, ends)
        return svg_text(figure)


@dataclass(frozen=True)
class _End:
    """The last point of a line, and its label."""

    x: float
    y: float
    text: str
    colour: str


def _line(axes: Axes, i: int, arm: str, arms: Sequence[str], found: Sequence[ArmPoint], last_budget: float) -> _End:
    others = [other for other in arms if other not in POLICIES]
    known = arm in POLICIES
    shade = POLICIES[arm].colour if known else COLOURS[others.index(arm) % len(COLOURS)]
    dash = ("--" if arm == BASELINE else "-") if known else DASHES[others.index(arm) % len(DASHES)]
    budgets = sorted({p.budget for p in found})
    rungs = [[p for p in found if p.budget == budget] for budget in budgets]
    xs = [Spread.of([p.flops for p in rung]).mean for rung in rungs]
    spreads = [Spread.of([p.quality for p in rung]) for rung in rungs]
    axes.fill_between(xs, [s.min for s in spreads], [s.max for s in spreads], color=shade, alpha=0.13, linewidth=0)
    axes.plot(
        xs,
        [s.mean for s in spreads],
        color=shade,
        linestyle=dash,
        linewidth=2.2,
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        zorder=3,
    )
    axes.scatter([p.flops for p in found], [p.quality for p in found], s=11, color=shade, alpha=0.5, linewidths=0)
    value = accuracy(spreads[-1].mean)
    if budgets[-1] < last_budget:
        value += f" at {format_flops(budgets[-1])}"
    text = textwrap.fill(f"{arm} {value.replace(' ', NO_BREAK)}", LABEL_WIDTH)
    return _End(xs[-1], spreads[-1].mean, text, shade)


def _name_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Write the labels to the right of the axes, each as close to its line's height as the other labels allow."""
    low, high = axes.get_ylim()
    height = (TOP - BOTTOM) * SIZE[1] * 72
    ordered = sorted(ends, key=lambda end: end.y)
    sizes = [LINE_HEIGHT * (1 + end.text.count("\n")) for end in ordered]
    places = spread_out([(end.y - low) / (high - low) * height for end in ordered], sizes)
    for end, place in zip(ordered, places, strict=True):
        axes.annotate(
            end.text,
            (end.x, end.y),
            (1.03, place / height),
            textcoords="axes fraction",
            va="center",
            color=end.colour,
            linespacing=1.15,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": end.colour,
                "linewidth": 0.7,
                "alpha": 0.5,
                "shrinkA": 2,
                "shrinkB": 5,
            },
        )


def spread_out(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Centres of labels that do not overlap: in the same order as `wanted` (ascending), and closest to it in least
    squares. `sizes` are the labels' heights."""
    offsets = [0.0]
    for a, b in pairwise(sizes):
        offsets.append(offsets[-1] + (a + b) / 2)
    # Minus their offsets, the places only have to ascend. Isotonic regression: merge neighbours that do not.
    pools: list[list[float]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        pools.append([place - offset])
        while len(pools) > 1 and _mean(pools[-2]) >= _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [_mean(pool) for pool in pools for _ in pool]
    return [place + offset for place, offset in zip(level, offsets, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
