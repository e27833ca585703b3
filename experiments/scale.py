"""Larger learners with one scorer, and references from chance to clean, on CIFAR-10N.

    python experiments/scale.py FOLDER RESULTS.jsonl     # half a minute to minutes a run on one AVX2 core
    python experiments/scale.py --table RESULTS.jsonl

The data, models and rates are those of `curated_map.py`, whose FOLDER it may share. The learners are trained at equal updates,
with a reference made of 1,000 curated examples; the references on 10,000 curated examples, for as many drawn as the table says,
each for the same learner at the map's budget.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from curate.datasets.spec import add_model, find_dataset, load_config
from curate.reports.interval import t_95
from curate.scoring.flops import forward_flops
from curate.scoring.loading import find_model, load_model
from curate.training.evaluate import evaluate_by_name
from curated_map import learn, reference_name, score_table
from findings_settings import conv
from map_settings import CHOOSING, RATES_AT, REFERENCE_EXAMPLES
from planned_runs import run_planned
from seeds import cell, difference, paired

STEPS, SEEDS, CURATED = 150, 3, 10_000
LEARNERS = {
    "learner": conv(8, 16, 32, 64, layers=(0, 1, 1)),
    "learner4": conv(16, 32, 64, 128, layers=(0, 1, 1)),
    "learner16": conv(32, 64, 128, 256, layers=(0, 1, 1)),
    "learner64": conv(64, 128, 256, 512, layers=(0, 1, 1)),
    # A state-space model; its stem strides by 16, so that it needs more pixels.
    "state-space": {"architecture": "efficientvim_m1", "preprocessing": {"size": 64}},
}
CONVOLUTIONAL = [name for name in LEARNERS if name != "state-space"]
# Examples drawn for the reference: from one step to what the map's references got.
DRAWN = (128, 512, 2_048, 8_192, 32_768, REFERENCE_EXAMPLES)
LEARNABILITY = {"policy": "learnability", **CHOOSING}
POLICIES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "learnability": LEARNABILITY,
    "filter 50 %": {"policy": "filter", "keep": 0.5},
    **{f"learnability, filter ratio {ratio}": {**LEARNABILITY, "filter_ratio": ratio} for ratio in (0.5, 0.9)},
}
# Uniform for twice the updates.
TWICE = "uniform, twice"


def of_learner(folder: Path, learner: str, policy: str, seed: int) -> dict[str, Any]:
    """Train a learner for the updates that all learners get, or twice as many of them for "uniform, twice"."""
    changes = {} if policy == TWICE else dict(POLICIES[policy])
    if changes:
        changes["reference_scores"] = score_table(folder, RATES_AT, "bulk")
    steps = 2 * STEPS if policy == TWICE else STEPS
    name = f"{learner}-{policy.replace(',', '').replace(' %', '').replace(' ', '-')}-seed{seed}"
    summary = learn(folder, "scale", name, seed, learner=learner, budget_flops=None, steps=steps, **changes)
    config = load_config(folder / "curate.toml")
    task = find_dataset("bulk", config).task
    flops = {
        model: forward_flops(load_model(find_model(model, task=task, num_classes=10, config=config))).per_example
        for model in (learner, "online")
    }
    ratio = flops[learner] / flops["online"]
    return {"learner": learner, "ratio": ratio, "policy": policy, "seed": seed, **measured(summary)}


def of_reference(folder: Path, drawn: int, policy: str, seed: int) -> dict[str, Any]:
    """Train the map's learner by what a reference says that saw so many examples."""
    changes = dict(POLICIES[policy])
    changes["reference_scores"] = score_table(folder, CURATED, "bulk", drawn)
    about = str(folder / "references" / reference_name(CURATED, drawn))
    quality = evaluate_by_name(about, "bulk", load_config(folder / "curate.toml"))["top1"]
    name = f"reference-{drawn}-{policy.replace(' %', '').replace(' ', '-')}-seed{seed}"
    summary = learn(folder, "scale", name, seed, **changes)
    return {"drawn": drawn, "reference_top1": quality, "policy": policy, "seed": seed, **measured(summary)}


def measured(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "top1": summary["quality"]["top1"],
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def planned() -> list[tuple[Any, ...]]:
    """All runs, as (learner or examples drawn, policy, seed), in their order: by one policy with all seeds, then the others."""
    first = [
        (learner, policy, seed)
        for seed in range(SEEDS)
        for learner in LEARNERS
        for policy in ("uniform", "learnability")
    ]
    others: list[tuple[Any, ...]] = []
    for seed in range(SEEDS):
        others += [(drawn, policy, seed) for policy in ("learnability", "filter 50 %") for drawn in DRAWN]
        others += [(learner, policy, seed) for policy in (*POLICIES, TWICE) for learner in LEARNERS]
    return [*dict.fromkeys([*first, *others])]


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return line.get("learner", line.get("drawn")), line["policy"], line["seed"]


def run(folder: Path, what: Any, policy: str, seed: int) -> dict[str, Any]:
    return (of_learner if what in LEARNERS else of_reference)(folder, what, policy, seed)


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 by learner, and by reference."""

    def by_seed(what: Any, policy: str) -> dict[int, float]:
        return {line["seed"]: line["top1"] for line in results if key_of(line)[:2] == (what, policy)}

    learners, references = [], []
    for learner in LEARNERS:
        for policy in (*POLICIES, TWICE):
            found = [line for line in results if key_of(line)[:2] == (learner, policy)]
            if found:
                top1 = by_seed(learner, policy)
                more = "" if policy == "uniform" else difference(top1, by_seed(learner, "uniform"))
                ratio, steps = found[0]["ratio"], found[0]["steps"]
                learners.append(f"| {learner} | {ratio:.0f} | {steps} | {policy} | {cell([*top1.values()])} | {more} |")
    for drawn in DRAWN:
        found = [line for line in results if line.get("drawn") == drawn]
        if found:
            cells = [cell([*by_seed(drawn, policy).values()]) for policy in ("learnability", "filter 50 %")]
            references.append(f"| {drawn:,} | {found[0]['reference_top1']:.1%} | {' | '.join(cells)} |")
    heads = {
        "learner | its FLOPs over the online model's | updates | policy | top-1 | minus uniform at as many updates": learners,
        "examples drawn for the reference | its top-1 | learnability | filter 50 %": references,
    }
    gains = {
        learner: paired(by_seed(learner, "learnability"), by_seed(learner, "uniform")) for learner in CONVOLUTIONAL
    }
    ratios = {line["learner"]: line["ratio"] for line in results if "learner" in line}
    points = [(math.log10(ratios[learner]), gain) for learner in CONVOLUTIONAL for gain in gains[learner]]
    return (
        fitted(points)
        + "\n\n"
        + "\n\n".join(
            "\n".join([f"| {head} |", "|---" * (head.count("|") + 1) + "|", *rows])
            for head, rows in heads.items()
            if rows
        )
    )


def fitted(points: list[tuple[float, float]]) -> str:
    """The least-squares line through gains in points over log10 of the ratio, with the 90 % interval of its slope."""
    x, y = zip(*points, strict=True)
    slope, intercept = statistics.linear_regression(x, y)
    left = sum((gain - intercept - slope * at) ** 2 for at, gain in points)
    mean = statistics.fmean(x)
    spread = math.sqrt(left / (len(points) - 2) / sum((at - mean) ** 2 for at in x))
    more = t_95(len(points) - 2) * spread
    return (
        f"Through {len(points)} pairs of convolutional learners: {intercept + slope * mean:+.1f} points at the mean ratio, and"
        f" {slope:+.1f} ({slope - more:+.1f} to {slope + more:+.1f}) for each tenfold."
    )


def add_learners(folder: Path) -> None:
    for name, entry in LEARNERS.items():
        add_model(folder / "curate.toml", name, entry)


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run, add_learners)
