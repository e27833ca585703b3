"""Curated examples of half the classes alone: what does choosing with them do to the other half? On CIFAR-10N.

    python experiments/half_curated.py FOLDER RESULTS.jsonl     # half a minute a run on one core
    python experiments/half_curated.py --table RESULTS.jsonl    # its table in docs/findings-tables.md

The data, models and rates are those of `curated_map.py`, whose FOLDER it may share. The 1,000 curated examples are of classes
0 to 4, and the reference saw no other class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curate.datasets.spec import load_config
from curate.training.evaluate import evaluate_by_name
from curated_map import add_examples, curated_examples, examples_of, learn, scored_by
from map_settings import BASE, CHOOSING, DISTILL, Arm, choosing
from planned_runs import run_planned
from seeds import cell, difference

SEEDS, CURATED, COVERED = 5, "curated-half", range(5)
# Half of so many curated examples are of the covered classes.
OF = 2_000
PARTS = ("covered", "others")
ARMS = {
    BASE: Arm("bulk", {}),
    "curated only, uniform": Arm("curated", {}),
    "bulk + curated, half of all drawn": Arm("bulk", {}, mix=0.5),
    "bulk, learnability": choosing("learnability", **CHOOSING),
    "bulk, filter 50 %": choosing("filter", keep=0.5),
    "bulk, filter 50 % of each class": choosing("filter", keep=0.5, keep_by="class"),
    "bulk, distilled from the reference": choosing("uniform", distill=DISTILL),
}


def set_up(folder: Path) -> None:
    """The curated half, and a test split for each half of the classes."""
    test = [*examples_of(folder, "bulk", "test")]
    add_examples(folder, CURATED, (e for e in curated_examples(folder, OF) if e.target in COVERED))
    add_examples(folder, PARTS[0], (e for e in test if e.target in COVERED), "test")
    add_examples(folder, PARTS[1], (e for e in test if e.target not in COVERED), "test")


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train one arm, and measure it on all classes and on each half of them."""
    what = ARMS[arm]
    changes = {"dataset": CURATED if what.data == "curated" else "bulk", **what.changes}
    if what.reference:
        changes["reference_scores"] = scored_by(folder, "reference-half", CURATED, "bulk")
    if what.mix:
        changes["mix"] = f"{CURATED}:{what.mix:.0%}"
    name = f"{arm.replace(',', '').replace('+', 'and').replace(' %', '').replace(' ', '-')}-seed{seed}"
    summary = learn(folder, "half", name, seed, **changes)
    config = load_config(folder / "curate.toml")
    parts = {part: evaluate_by_name(str(folder / "half" / name), part, config)["top1"] for part in PARTS}
    return {
        "arm": arm,
        "seed": seed,
        "top1": summary["quality"]["top1"],
        **parts,
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 over all classes and over each half, with what that is beside uniform on the bulk."""
    columns = ("top1", *PARTS)
    heads = [f"{name} | minus uniform" for name in ("all classes", "the five covered", "the five others")]
    lines = [f"| arm | {' | '.join(heads)} |", "|---" * (2 * len(columns) + 1) + "|"]
    for arm in ARMS:
        cells = []
        for column in columns:
            here, base = (
                {line["seed"]: line[column] for line in results if line["arm"] == name} for name in (arm, BASE)
            )
            cells += [cell([*here.values()]), "" if arm == BASE else difference(here, base)]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def planned() -> list[tuple[str, int]]:
    """(arm, seed) of all runs, in their order."""
    return [(arm, seed) for seed in range(SEEDS) for arm in ARMS]


def key_of(line: dict[str, Any]) -> tuple[str, int]:
    return line["arm"], line["seed"]


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run, set_up)
