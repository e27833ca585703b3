"""What choosing gains over how far its reference is ahead of uniform training: the runs of `crossing.py` and `scale.py`.

python experiments/crossing_figure.py experiments/results/2026-11-26-crossing.jsonl \\
    experiments/results/2026-11-26-scale.jsonl docs/img/reference-ahead.svg
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from crossing import BASE, CLEAN, NOISY, SIZES, by_seed
from curate.reports.plots import STYLE, svg_text
from curated_map import read_results
from matplotlib.figure import Figure
from seeds import paired

POLICY = "learnability"
COLOURS = {NOISY: "#0072b2", CLEAN: "#d55e00"}
MARKERS = dict(zip(SIZES, ("^", "s", "o"), strict=True))


@dataclass(frozen=True)
class Choice:
    """Learnability beside uniform on the same data and budget: `ahead` is the reference's top-1 less uniform's, `gain`
    learnability's less uniform's, both in points."""

    labels: str
    size: int
    ahead: float
    gain: float
    seeds: int


def choices(crossing: list[dict[str, Any]], scale: list[dict[str, Any]]) -> list[Choice]:
    """One of each arm, data set and budget; each seed that both have counts once."""
    known = {line["arm"]: line["reference_top1"] for line in crossing if "reference_top1" in line}
    # The filter's reference is learnability's, whose first runs did not measure it.
    known.setdefault(POLICY, known.get("filter 50 %"))
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in crossing:
        found.setdefault((line.get("labels", NOISY), line["examples"], line["multiple"], line["arm"]), []).append(line)
    made = []
    for (labels, size, multiple, arm), lines in found.items():
        uniform = by_seed(found.get((labels, size, multiple, BASE), []))
        made += choice(labels, size, known.get(arm), by_seed(lines), uniform) if arm.startswith(POLICY) else []
    uniform = by_seed(found[NOISY, SIZES[-1], 1, BASE])
    for line in scale:
        if "drawn" in line and line["policy"] == POLICY:
            made += choice(NOISY, SIZES[-1], line["reference_top1"], {line["seed"]: line["top1"]}, uniform)
    return made


def choice(
    labels: str, size: int, reference: float | None, chosen: dict[int, float], uniform: dict[int, float]
) -> list[Choice]:
    gains = paired(chosen, uniform)
    if reference is None or not gains:
        return []
    base = statistics.fmean(uniform[seed] for seed in uniform.keys() & chosen.keys())
    return [Choice(labels, size, 100 * (reference - base), statistics.fmean(gains), len(gains))]


def figure_of(found: list[Choice]) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.4), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for labels in COLOURS:
            for size, marker in MARKERS.items():
                of = [one for one in found if (one.labels, one.size) == (labels, size)]
                axes.scatter(
                    [one.ahead for one in of],
                    [one.gain for one in of],
                    s=[18 + 12 * one.seeds for one in of],
                    marker=marker,
                    color=COLOURS[labels],
                    alpha=0.8,
                    linewidths=0,
                    label=f"{labels} labels, {size:,} examples",
                )
        axes.axhline(0, color="#999999", linewidth=1)
        axes.axvline(0, color="#999999", linewidth=1)
        axes.set_xlabel("top-1 of the reference, minus uniform's (points)")
        axes.set_ylabel("learnability minus uniform (points)")
        figure.legend(loc="outside right upper", fontsize=9)
        return svg_text(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crossing", type=Path)
    parser.add_argument("scale", type=Path)
    parser.add_argument("svg", type=Path)
    arguments = parser.parse_args()
    found = choices(read_results(arguments.crossing), read_results(arguments.scale))
    arguments.svg.write_text(figure_of(found), encoding="utf-8")
    ahead = [one.gain for one in found if one.ahead > 0]
    behind = [one.gain for one in found if one.ahead <= 0]
    for name, gains in (("ahead", ahead), ("behind", behind)):
        print(
            f"reference {name}: {len(gains)} choices, {min(gains):+.1f} to {max(gains):+.1f}, mean {statistics.fmean(gains):+.1f}"
        )


if __name__ == "__main__":
    main()
