"""What the local choice costs: how much less is learned by what ranks choose each among their own rows, than globally.

    python experiments/local_choice.py --labels data/cifar10n/analysis/train.parquet RUN ... > results/DATE-local-choice.json

From the scores that runs recorded, without training. A super-batch's rows are divided among W ranks, both choices are made of
the same rows, and the means of the chosen scores are compared. "kept" is the local choice's gain over the mean of all rows,
of the global choice's: 1 is as good, 0 is a uniform draw. Each rank holds either rows at random, as of shards that
were shuffled when they were written, or the rows of its own classes, as of shards that were written class by class.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pd
import pyarrow.parquet as pq
import torch
from curate.scoring.selection import select
from curate.training.local import local_shares

RANKS, SAMPLERS, DRAWS, FILTER_RATIO = (2, 4, 8, 64), ("softmax", "topk"), 20, 0.8
# As recorded, and several in one: the online model changes little between two records.
TOGETHER = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of learnability runs with selections/")
    parser.add_argument("--labels", required=True, type=Path, help="Parquet with key and --label")
    parser.add_argument("--label", default="worse_label")
    arguments = parser.parse_args()
    table = pq.read_table(arguments.labels, columns=["key", arguments.label])
    label_of = dict(zip(table["key"].to_pylist(), table[arguments.label].to_pylist(), strict=True))
    lines = []
    for together in TOGETHER:
        batches = [batch for run in arguments.runs for batch in super_batches(run, label_of, together)]
        for order in ("at random", "by class"):
            for sampler in SAMPLERS:
                for ranks in RANKS:
                    lines.append(measured(batches, order, sampler, ranks))
    told = f"python experiments/local_choice.py --labels {arguments.labels} {' '.join(map(str, arguments.runs))}"
    print(json.dumps({"command": told, "label": arguments.label, "draws": DRAWS, "lines": lines}, indent=1))


def super_batches(run: Path, label_of: dict[str, int], together: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """(scores [B], labels [B]) of each recorded super-batch, or of several consecutive ones as one."""
    rows = pd.dataset(run / "selections").to_table(columns=["step", "key", "score"])
    step, score = rows["step"].to_numpy(), rows["score"].to_numpy()
    label = np.array([label_of[key] for key in rows["key"].to_pylist()])
    steps = np.unique(step)
    for first in range(0, len(steps) - together + 1, together):
        here = np.isin(step, steps[first : first + together])
        yield torch.from_numpy(score[here]), label[here]


def measured(batches: list[tuple[torch.Tensor, np.ndarray]], order: str, sampler: Any, ranks: int) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(0)
    found = []
    for score_B, label_B in batches:
        b = round(len(score_B) * (1 - FILTER_RATIO))
        globally, locally = [], []
        for _ in range(DRAWS):
            place_B = torch.randperm(len(score_B), generator=chance)
            if order == "by class":
                place_B = place_B[torch.from_numpy(np.argsort(label_B[place_B.numpy()], kind="stable"))]
            parts = torch.tensor_split(score_B[place_B], ranks)
            shares = local_shares([len(part) for part in parts], b)
            chosen = [
                part[select(part, share, sampler=sampler, generator=chance)]
                for part, share in zip(parts, shares, strict=True)
            ]
            locally.append(float(torch.cat(chosen).mean()))
            globally.append(float(score_B[select(score_B, b, sampler=sampler, generator=chance)].mean()))
        found.append((statistics.fmean(globally), statistics.fmean(locally), float(score_B.mean())))
    kept = [(local - mean) / (best - mean) for best, local, mean in found]
    return {
        "B": len(batches[0][0]),
        "b": round(len(batches[0][0]) * (1 - FILTER_RATIO)),
        "ranks": ranks,
        "rows of a rank": order,
        "sampler": sampler,
        "global": round(statistics.fmean(best for best, _, _ in found), 4),
        "local": round(statistics.fmean(local for _, local, _ in found), 4),
        "all": round(statistics.fmean(mean for _, _, mean in found), 4),
        "kept": {"mean": round(statistics.fmean(kept), 4), "min": round(min(kept), 4), "max": round(max(kept), 4)},
        "n": len(found),
    }


if __name__ == "__main__":
    main()
