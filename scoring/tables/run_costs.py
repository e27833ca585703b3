"""The cost of training a reference, from the summary of its run."""

from __future__ import annotations

import json

from ...datasets.storage import join_url, read_bytes


def recorded_train_flops(reference: str) -> float | None:
    """FLOPs that the run in the folder `reference` spent; None where it is no run folder."""
    try:
        summary = json.loads(read_bytes(join_url(reference, "summary.json")))
    except (FileNotFoundError, ValueError):
        return None
    nothing_amortised: float | None = summary["regimes"]["nothing_amortised"]
    return nothing_amortised
