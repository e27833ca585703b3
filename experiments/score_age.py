"""How stale may an online loss be? Learnability with super-batches scored 0 to 64 steps before their turn, on CIFAR-10N.

    python experiments/score_age.py FOLDER RESULTS.jsonl     # about a minute a run on one AVX2 core; continues where it stopped
    python experiments/score_age.py --table RESULTS.jsonl

The data, models, reference (trained on 1,000 curated examples), budget and rates are those of `curated_map.py`, whose FOLDER
it may share. A run has 145 steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

from curate.datasets.spec import load_config
from curate.training import RunOptions, train
from curated_map import BUDGET, CHOOSING, LR, NEVER, RATES_AT, quiet, read_results, score_table, set_up

AGES, SEEDS = (0, 64, 4, 16, 1), 3


def run(folder: Path, age: int, seed: int) -> dict[str, Any]:
    """Train the learner with losses so many steps old."""
    options = RunOptions.of(
        dataset="bulk",
        learner="learner",
        policy="learnability",
        reference_scores=score_table(folder, RATES_AT, "bulk"),
        score_ahead=age,
        budget_flops=BUDGET,
        seed=seed,
        lr=LR,
        selections_every=NEVER,
        checkpoint_every=NEVER,
        log_every=NEVER,
        out=str(folder / "ages"),
        name=f"age-{age}-seed{seed}",
        **CHOOSING,
    )
    summary = train(options, config=load_config(folder / "curate.toml"), resume=True, report=quiet)
    seconds = summary["seconds"]["total"] - summary["seconds"]["evaluate"]
    return {"age": age, "seed": seed, "top1": summary["quality"]["top1"], "steps": summary["steps"], "seconds": seconds}


def table(results: list[dict[str, Any]]) -> str:
    """Top-1 by age."""
    lines = ["| steps | top-1: mean (least..greatest) | n |", "| --- | --- | --- |"]
    for age in sorted(AGES):
        found = [line["top1"] for line in results if line["age"] == age]
        if found:
            mean = statistics.mean(found)
            lines.append(f"| {age} | {mean:.1%} ({min(found):.1%}..{max(found):.1%}) | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER RESULTS")
    parser.add_argument("--table", action="store_true", help="print the results, the last of the paths, as Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_results(arguments.paths[-1])))
        return
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    folder, results = (path.resolve() for path in arguments.paths)
    set_up(folder)
    done = {(line["age"], line["seed"]) for line in read_results(results)}
    for seed in range(SEEDS):
        for age in AGES:
            if (age, seed) not in done:
                found = run(folder, age, seed)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                print(f"age {age}, seed {seed}: top1 {found['top1']:.2%}, {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
