"""What a run's folder holds, to compare a disturbed run with an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CLOCK = (
    "seconds",
    "samples_per_second",
    "mfu",
    "data_share",
    "samples_per_second_per_gpu",
    "slowest_data_seconds",
)


def left_by(folder: Path) -> dict[str, Any]:
    """All that must be equal: the models' bytes, every selection, every line of metrics but the clock, the ledger."""
    weights = {p.name: p.read_bytes() for p in sorted((folder / "checkpoints").iterdir())}
    selections = [
        row
        for file in sorted((folder / "selections").glob("*.parquet"))
        for row in pq.ParquetFile(file).read().to_pylist()
    ]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "weights": weights,
        "selections": sorted(selections, key=lambda row: (row["step"], row["shard"], row["key"])),
        "metrics": [{k: v for k, v in line.items() if k not in CLOCK} for line in metrics],
        "summary": {k: v for k, v in summary.items() if k not in ("seconds", "run")},
    }
