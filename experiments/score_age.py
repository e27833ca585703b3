"""How stale may an online loss be? Learnability with super-batches scored 0 to 64 steps before their turn, on CIFAR-10N.

    python experiments/score_age.py FOLDER RESULTS.jsonl     # about a minute a run on one AVX2 core; continues where it stopped
    python experiments/score_age.py --table RESULTS.jsonl

The data, models, reference (trained on 1,000 curated examples), budget and rates are those of `curated_map.py`, whose FOLDER
it may share. A run has 145 steps.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from curated_map import learn, score_table
from map_settings import CHOOSING, RATES_AT
from planned_runs import run_planned

AGES, SEEDS = (0, 64, 4, 16, 1), 3


def run(folder: Path, age: int, seed: int) -> dict[str, Any]:
    """Train the learner with losses so many steps old."""
    scores = score_table(folder, RATES_AT, "bulk")
    choosing: dict[str, Any] = {"policy": "learnability", "reference_scores": scores, "score_ahead": age, **CHOOSING}
    summary = learn(folder, "ages", f"age-{age}-seed{seed}", seed, **choosing)
    return {
        "age": age,
        "seed": seed,
        "top1": summary["quality"]["top1"],
        "steps": summary["steps"],
        "seconds": summary["took"],
    }


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 by age."""
    lines = ["| steps | top-1: mean (least..greatest) | n |", "| --- | --- | --- |"]
    for age in sorted(AGES):
        found = [line["top1"] for line in results if line["age"] == age]
        if found:
            mean = statistics.mean(found)
            lines.append(f"| {age} | {mean:.1%} ({min(found):.1%}..{max(found):.1%}) | {len(found)} |")
    return "\n".join(lines)


def planned() -> list[tuple[Any, ...]]:
    return [(age, seed) for seed in range(SEEDS) for age in AGES]


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["age"], line["seed"]


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run)
