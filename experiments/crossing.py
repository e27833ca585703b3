"""Where do choosing and uniform training meet? Both at budgets that double, to many epochs of the data, on CIFAR-10N.

    python experiments/crossing.py FOLDER RESULTS.jsonl  # half a minute to three minutes a run on one AVX2 core
    python experiments/crossing.py --table RESULTS.jsonl

The data, models, reference (trained on 1,000 curated examples) and rates are those of `curated_map.py`, whose FOLDER it may
share. Every budget is a complete run of its own. An epoch is as many updates of 128 as there are examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from curate.datasets.spec import add_dataset, load_config
from curated_map import (
    BUDGET,
    CHOOSING,
    RATES_AT,
    add_results,
    argument_parser,
    begin,
    dataset_of,
    learn,
    read_results,
    score_table,
)
from seeds import cell, difference

SIZES = (1_000, 5_000, 20_000)
MULTIPLES, SEEDS = (1, 2, 4, 8), 3
PER_SHARD, BATCH = 1_000, 128
BASE, ALONE = "uniform", "the 1,000 curated alone, uniform"
# What an arm changes in the run; `stored` stands for the score table.
ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "learnability": {"policy": "learnability", "reference_scores": "stored", **CHOOSING},
    "filter 50 %": {"policy": "filter", "reference_scores": "stored", "keep": 0.5},
    "InfoBatch": {"policy": "infobatch", "filter_ratio": 0.3},
    ALONE: {},
}
FIRST = ("uniform", "learnability")


def planned() -> Iterator[tuple[int, str, int, int]]:
    """(examples, arm, multiple of the budget, seed): the first arms at all budgets but the largest, then the others, then more
    seeds, then the largest budget."""
    for multiples in (MULTIPLES[:-1], MULTIPLES[-1:]):
        for seed in range(SEEDS):
            for arms in (FIRST, [arm for arm in ARMS if arm not in FIRST]):
                for size in SIZES:
                    for multiple in multiples:
                        yield from ((size, arm, multiple, seed) for arm in arms if arm != ALONE or size == SIZES[0])


def run(folder: Path, size: int, arm: str, multiple: int, seed: int) -> dict[str, Any]:
    """Train the learner in one arm. The curated examples alone are the same for every size of the bulk."""
    dataset = dataset_of(folder, "curated", RATES_AT) if arm == ALONE else bulk_of(folder, size)
    changes = dict(ARMS[arm])
    if "reference_scores" in changes:
        changes["reference_scores"] = score_table(folder, RATES_AT, dataset)
    name = name_of(size, arm, multiple, seed)
    summary = learn(folder, "crossing", name, seed, dataset=dataset, budget_flops=multiple * BUDGET, **changes)
    return {
        "name": name,
        "examples": RATES_AT if arm == ALONE else size,
        "arm": arm,
        "multiple": multiple,
        "seed": seed,
        "top1": summary["quality"]["top1"],
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def name_of(size: int, arm: str, multiple: int, seed: int) -> str:
    return f"{arm.replace(',', '').replace(' %', '').replace(' ', '-')}-{size}-{multiple}x-seed{seed}"


def key_of(line: dict[str, Any]) -> str:
    return line["name"]


def bulk_of(folder: Path, size: int) -> str:
    """The first shards of the bulk."""
    toml = folder / "curate.toml"
    config = load_config(toml)
    bulk, shards = config.datasets["bulk"], size // PER_SHARD
    if shards == 20:
        return "bulk"
    name = f"bulk-{size}"
    if name not in config.datasets:
        add_dataset(toml, name, {**bulk, "train": f"data/cifar10n/train/{{00000..{shards - 1:05d}}}.tar"})
    return name


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 by arm and budget for each size, with what it is beside uniform and the epochs of uniform."""
    multiples = sorted({line["multiple"] for line in results})
    budgets = [f"{multiple * BUDGET / 1e12:g} TF" for multiple in multiples]
    lines = [f"| examples | arm | {' | '.join(budgets)} |", "|---" * (len(budgets) + 2) + "|"]
    for size in sorted({line["examples"] for line in results}):
        arms = [arm for arm in ARMS if any((line["examples"], line["arm"]) == (size, arm) for line in results)]
        base = {multiple: of(results, size, arms[0], multiple) for multiple in multiples}
        epochs = [f"{BATCH * steps / size:.1f}" if steps else "" for steps in (updates(base[m]) for m in multiples)]
        lines.append(f"| {size:,} | epochs, uniform | {' | '.join(epochs)} |")
        for arm in arms:
            found = {multiple: of(results, size, arm, multiple) for multiple in multiples}
            lines.append(f"| {size:,} | {arm} | {' | '.join(cell([*by_seed(found[m]).values()]) for m in multiples)} |")
            if arm != arms[0]:
                more = [difference(by_seed(found[m]), by_seed(base[m])) for m in multiples]
                lines.append(f"| {size:,} | {arm}, minus uniform | {' | '.join(more)} |")
    return "\n".join(lines)


def of(results: list[dict[str, Any]], size: int, arm: str, multiple: int) -> list[dict[str, Any]]:
    return [line for line in results if (line["examples"], line["arm"], line["multiple"]) == (size, arm, multiple)]


def by_seed(found: list[dict[str, Any]]) -> dict[int, float]:
    return {line["seed"]: line["top1"] for line in found}


def updates(found: list[dict[str, Any]]) -> int:
    return found[0]["steps"] if found else 0


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    if arguments.table:
        print(tables(read_results(arguments.paths[-1])))
        return
    folder, results = begin(arguments.paths)
    done = {key_of(line) for line in read_results(results)}
    missing = [one for one in planned() if name_of(*one) not in done]
    add_results(results, ((name_of(*one), partial(run, folder, *one)) for one in missing), arguments.seconds)


if __name__ == "__main__":
    main()
