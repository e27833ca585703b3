"""What it cost to train a reference, where the run that made it says so."""

from __future__ import annotations

import json

from ...datasets.storage import join_url, read_bytes


def recorded_train_flops(reference: str) -> float | None:
    """FLOPs of everything that the run folder `reference` spent on training it; None where it is no run folder."""
    try:
        summary = json.loads(read_bytes(join_url(reference, "summary.json")))
    except (FileNotFoundError, ValueError):
        return None
    nothing_amortised: float | None = summary["regimes"]["nothing_amortised"]
    return nothing_amortised
