"""The README's chart, from points of real runs.

python experiments/chart.py experiments/results/2026-11-25-chart.json docs/img/quality-over-flops.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from curate.reports.chart import ArmPoint, chart

# Arms that are no policies: what the uniform learner trained on instead.
NAMES = {
    "curated-alone": "curated data alone, uniform",
    "mixed": "noisy and curated data, uniform",
}
# What a run's total counts, by regime.
COUNTED = {
    "fully_amortised": "learner train",
    "foundation": "learner train, online score and online train",
    "pretrained_reference": "learner train, online score, online train and reference score",
    "nothing_amortised": "all five lines of the ledger",
}


def read_points(path: Path, quality: str, regime: str) -> list[ArmPoint]:
    """Every run of the file, in its order. Runs of which this regime's cost is not known are left out."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [
        ArmPoint(
            arm=NAMES.get(point["arm"], point["arm"]),
            budget=point["budget"],
            seed=point["seed"],
            flops=point["regimes"][regime],
            quality=point[quality],
        )
        for point in content["points"]
        if point["regimes"][regime] is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--quality", default="top1", help="which of a point's values is drawn")
    parser.add_argument("--title", default="top-1 accuracy on clean test images")
    parser.add_argument("--regime", choices=COUNTED, default="foundation", help="what total FLOPs count")
    arguments = parser.parse_args()
    found = read_points(arguments.points, arguments.quality, arguments.regime)
    cost = f"FLOPs of a run: {COUNTED[arguments.regime]}"
    text = chart(found, quality=arguments.title, cost=cost)
    arguments.svg.parent.mkdir(parents=True, exist_ok=True)
    arguments.svg.write_text(text, encoding="utf-8")
    print(f"{arguments.svg}: {len(found)} runs of {len({point.arm for point in found})} arms")


if __name__ == "__main__":
    main()
