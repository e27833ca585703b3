"""Would a far cheaper judge do? A linear model of 8 x 8 pixels as the reference, and confident learning, on CIFAR-10N.

    pip install cleanlab pandas                                  # for confident learning alone
    python experiments/cheap_scorers.py FOLDER RESULTS.jsonl     # half a minute a run on one core
    python experiments/cheap_scorers.py --table RESULTS.jsonl    # its table in docs/findings-tables.md

The data, models and rates are those of `curated_map.py`, whose FOLDER it may share. Confident learning (cleanlab's
`find_label_issues`, as it comes) is given predictions of the map's reference model for the half of the bulk that it was not
trained on, drops what it lists, and the learner trains uniformly on the rest.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from curate.datasets.spec import add_dataset, add_model, load_config
from curated_map import add_examples, dataset_of, examples_of, learn, scored_by
from map_settings import BASE, CHOOSING, RATES_AT, REFERENCE_EXAMPLES
from planned_runs import run_planned
from seeds import cell, difference
from timm.models import register_model
from torch import nn

SEEDS, SIDE = 5, 8
KEPT = "bulk-confident"
CONFIDENT = "confident learning, then uniform"
HALVES = {"bulk-first": "{00000..00009}", "bulk-second": "{00010..00019}"}
LINEAR = {"architecture": "linear_pixels", "preprocessing": {"size": SIDE}}
POLICIES: dict[str, dict[str, Any]] = {
    "learnability": {"policy": "learnability", **CHOOSING},
    "filter 50 %": {"policy": "filter", "keep": 0.5},
}
# By arm: how many curated examples the linear model was trained on (the bulk for 0), and the policy.
JUDGED = {
    f"linear on {what}, {policy}": (curated, policy)
    for curated, what in ((RATES_AT, f"{RATES_AT:,} curated"), (0, "the bulk"))
    for policy in POLICIES
}
ARMS = (BASE, *JUDGED, CONFIDENT)


class LinearPixels(nn.Module):
    """Logits [B, num_classes] that are linear in the pixels [B, 3, 8, 8]."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes, self.head = num_classes, nn.Linear(3 * SIDE * SIDE, num_classes)
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, SIDE, SIDE),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x_BCHW.flatten(1))
        return logits


@register_model  # type: ignore[untyped-decorator]
def linear_pixels(pretrained: bool = False, **kwargs: Any) -> LinearPixels:
    """timm entry point."""
    return LinearPixels(kwargs.get("num_classes", 10))


def judged_by(folder: Path, curated: int) -> str:
    trained_on = dataset_of(folder, "curated", curated) if curated else "bulk"
    return scored_by(folder, f"linear-{curated}", trained_on, "bulk", model="linear")


@cache
def confident(folder: Path) -> dict[str, Any]:
    """Write the part of the bulk that confident learning does not list. What it lists, and how much of that is wrong."""
    from cleanlab.filter import find_label_issues

    toml = folder / "curate.toml"
    bulk = load_config(toml).datasets["bulk"]
    for name, shards in HALVES.items():
        if name not in load_config(toml).datasets:
            add_dataset(toml, name, {**bulk, "train": f"data/cifar10n/train/{shards}.tar"})
    first, second = HALVES
    parts = [
        rows_of(scored_by(folder, f"reference-{other}", other, half, REFERENCE_EXAMPLES // 2))
        for half, other in ((first, second), (second, first))
    ]
    rows = pa.concat_tables(parts)
    logits = torch.from_numpy(np.stack(rows["logits"].to_numpy()).astype(np.float64))
    listed = find_label_issues(rows["label"].to_numpy(), logits.softmax(1).numpy(), n_jobs=1)
    names = list(zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True))
    dropped = {name for name, one in zip(names, listed, strict=True) if one}
    known = pq.read_table(folder / bulk["analysis"], columns=["shard", "key", "clean_label"]).to_pylist()
    clean = {(row["shard"], row["key"]): row["clean_label"] for row in known}
    wrong = {name for name, label in zip(names, rows["label"].to_pylist(), strict=True) if label != clean[name]}
    kept = (e for e in examples_of(folder, "bulk") if (e.shard, e.key) not in dropped)
    add_examples(folder, KEPT, kept)
    return {"listed": len(dropped), "listed_wrong": len(dropped & wrong), "rows": len(names)}


def rows_of(table: str) -> pa.Table:
    files = sorted(Path(table).glob("*.parquet"))
    return pa.concat_tables(pq.read_table(path, partitioning=None) for path in files)


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train the learner in one arm."""
    changes: dict[str, Any] = {}
    about: dict[str, Any] = {}
    if arm in JUDGED:
        curated, policy = JUDGED[arm]
        changes = {**POLICIES[policy], "reference_scores": judged_by(folder, curated)}
    elif arm == CONFIDENT:
        about = confident(folder)
        changes = {"dataset": KEPT}
    name = f"{arm.replace(',', '').replace(' %', '').replace(' ', '-')}-seed{seed}"
    summary = learn(folder, "cheap", name, seed, **changes)
    return {
        "arm": arm,
        "seed": seed,
        "top1": summary["quality"]["top1"],
        **about,
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 by arm, with what it is beside uniform."""
    lines = ["| arm | top-1 | minus uniform |", "|---" * 3 + "|"]
    for arm in ARMS:
        here, base = ({r["seed"]: r["top1"] for r in results if r["arm"] == name} for name in (arm, BASE))
        lines.append(f"| {arm} | {cell([*here.values()])} | {'' if arm == BASE else difference(here, base)} |")
    return "\n".join(lines)


def planned() -> list[tuple[str, int]]:
    """(arm, seed) of all runs, in their order."""
    return [(arm, seed) for seed in range(SEEDS) for arm in ARMS]


def key_of(line: dict[str, Any]) -> tuple[str, int]:
    return line["arm"], line["seed"]


def add_linear(folder: Path) -> None:
    add_model(folder / "curate.toml", "linear", LINEAR)


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run, add_linear)
