"""The points of a comparison, read from its run folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import RunError
from ..ledger import LINES, REGIMES
from .content import Point


def read_points(runs: Iterable[Path], quality: str) -> list[Point]:
    """One point for each finished run; `quality` names the measure. Raises RunError where a file is missing or damaged."""
    return [_point(run, quality) for run in runs]


def _point(run: Path, quality: str) -> Point:
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return Point(
            run=run.name,
            policy=summary["policy"],
            budget_flops=config["budget_flops"],
            seed=summary["seed"],
            quality=summary["quality"][quality],
            costs={
                "learner_updates": summary["steps"],
                "total_flops": summary["regimes"]["foundation"],
                "seconds": _training_seconds(summary["seconds"]),
            },
            filter_ratio=config["filter_ratio"],
            lr=config["lr"],
            lines={line: summary["ledger"][line] for line in LINES},
            regimes={name: summary["regimes"][name] for name in REGIMES},
            reference=summary.get("reference_quality"),
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RunError(
            f"{run}: its summary.json or config.json is missing or damaged ({e}); delete the folder and compare again"
        ) from None


def _training_seconds(seconds: Mapping[str, float]) -> float:
    """A run's own time: without evaluating, which is no part of a method, and compiling, which later runs find done."""
    return seconds["total"] - seconds.get("evaluate", 0.0) - seconds.get("compile", 0.0)
