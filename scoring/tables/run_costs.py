"""The cost of training a reference, from the summary of its run."""

from __future__ import annotations

import json
from typing import Any

from ...datasets.storage import join_url, read_bytes


def recorded_train_flops(reference: str) -> float | None:
    """FLOPs that the run in the folder `reference` spent; None where it is no run folder."""
    summary = _summary(reference)
    nothing_amortised: float | None = summary["regimes"]["nothing_amortised"] if summary else None
    return nothing_amortised


def recorded_quality(reference: str, measure: str) -> tuple[float, str] | None:
    """(the quality of the run in the folder `reference`, the data set on whose test split it was measured); None where it is
    no run folder, or was not measured."""
    summary = _summary(reference) or {"quality": {}}
    quality = summary["quality"].get(measure)
    return None if quality is None else (float(quality), str(summary["dataset"]))


def _summary(run: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(read_bytes(join_url(run, "summary.json")))
    except (FileNotFoundError, ValueError):
        return None
    return found
