"""The figure of `knobs.py`: what each setting changes, and what choosing gains under it.

python experiments/knobs_figure.py experiments/results/2026-11-26-knobs.jsonl docs/img/knobs.svg
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import matplotlib as mpl
from curate.reports.plots import STYLE, colour, svg_text
from curated_map import read_results
from knobs import BASE, BOTH, LEARNABILITY, SETTINGS, UNIFORM, by_seed
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from seeds import half, paired

POLICIES = (UNIFORM, LEARNABILITY)
# Where the two policies' marks lie beside a setting's line, in rows.
OFFSET = {UNIFORM: 0.15, LEARNABILITY: -0.15}


def figure_of(path: Path) -> str:
    """The figure as SVG: means with 90 % intervals, in points."""
    top1 = by_seed(read_results(path))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 5.6), facecolor="white", layout="constrained")
        changed, gained = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        settings = [setting for setting in SETTINGS if (setting, LEARNABILITY) in top1]
        for row, setting in enumerate(settings):
            for policy in POLICIES if setting in BOTH else (LEARNABILITY,):
                shares = top1[setting, policy]
                beside = OFFSET[policy] if setting in BOTH else 0.0
                mark(changed, paired(shares, top1[BASE, policy]), row - beside, policy, label=not row)
            uniform = top1[setting if setting in BOTH else BASE, UNIFORM]
            mark(gained, paired(top1[setting, LEARNABILITY], uniform), row, LEARNABILITY)
        changed.set_yticks(range(len(settings)), settings)
        changed.invert_yaxis()
        changed.set_title("what the setting changes", fontsize="medium")
        gained.set_title("learnability minus uniform", fontsize="medium")
        for axes in (changed, gained):
            axes.set_xlabel("points of top-1")
            axes.axvline(0, color="#999999", linewidth=1)
            axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper center", ncols=2)
        return svg_text(figure)


def mark(axes: Axes, points: list[float], row: float, policy: str, *, label: bool = False) -> None:
    axes.errorbar(
        statistics.fmean(points),
        row,
        xerr=half(points),
        fmt="o" if policy == LEARNABILITY else "s",
        markersize=5,
        color=colour(policy, POLICIES),
        label=policy if label else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("svg", type=Path)
    arguments = parser.parse_args()
    arguments.svg.write_text(figure_of(arguments.results), encoding="utf-8")


if __name__ == "__main__":
    main()
