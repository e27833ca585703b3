"""A reference that trains during the run beside one that was trained and stored before, at equal total FLOPs, on CIFAR-10N.

    python experiments/moving_reference.py FOLDER RESULTS.jsonl  # half a minute a run on one quiet AVX2 core; continues
    python experiments/moving_reference.py --table RESULTS.jsonl

The data, models, budget and rates are those of `curated_map.py`, whose FOLDER it may share, with no curated example: every
reference learns from the noisy labels of the bulk itself. Every arm spends the same in all (nothing amortised): the stored
reference's training and scoring are charged to its run, the moving one's are part of its run.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from curated_map import learn, score_table
from map_settings import CHOOSING
from planned_runs import run_planned
from seeds import cell

SEEDS = 3
LEARNABILITY = {"policy": "learnability", **CHOOSING}
# What an arm changes in the run. `stored` stands for the score table.
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "stored reference": {**LEARNABILITY, "reference_scores": "stored", "charge_reference": True},
    "moving reference, the same model": {**LEARNABILITY, "reference_online": "reference"},
    "moving reference, as small as the online model": {**LEARNABILITY, "reference_online": "online"},
}


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train the learner in one arm."""
    changes = dict(ARMS[arm])
    if "reference_scores" in changes:
        changes["reference_scores"] = score_table(folder, 0, "bulk")
    name = f"{arm.replace(',', '').replace(' ', '-')}-seed{seed}"
    summary = learn(folder, "moving", name, seed, **changes)
    return {
        "arm": arm,
        "seed": seed,
        "top1": summary["quality"]["top1"],
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1, updates of the learner and FLOPs by arm."""
    head = "top-1 | updates | FLOPs of the run | with the reference paid for"
    lines = [f"| arm | {head} |", "|---" * 5 + "|"]
    for arm in ARMS:
        found = [line for line in results if line["arm"] == arm]
        if found:
            run_TF, all_TF = (
                statistics.fmean(line["regimes"][regime] for line in found) / 1e12
                for regime in ("foundation", "nothing_amortised")
            )
            top1 = cell([line["top1"] for line in found])
            lines.append(f"| {arm} | {top1} | {found[0]['steps']} | {run_TF:.3f} TF | {all_TF:.3f} TF |")
    return "\n".join(lines)


def planned() -> list[tuple[Any, ...]]:
    return [(arm, seed) for seed in range(SEEDS) for arm in ARMS]


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["arm"], line["seed"]


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run)
