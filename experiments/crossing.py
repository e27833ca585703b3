"""Where do choosing and uniform training meet? Both at budgets that double, to many epochs of the data, on CIFAR-10N, under
people's labels, 40 % of them wrong, and under clean ones.

    python experiments/crossing.py FOLDER RESULTS.jsonl  # half a minute to three minutes a run on one AVX2 core
    python experiments/crossing.py --table RESULTS.jsonl

The data, models, reference (trained on 1,000 curated examples) and rates are those of `curated_map.py`, whose FOLDER it may
share. Every budget is a complete run of its own. An epoch is as many updates of 128 as there are examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from curate.datasets.preparers.writer import write_shards
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import add_dataset, find_dataset, load_config
from curate.training.evaluate import evaluate_by_name
from curated_map import dataset_of, learn, reference_name, score_table, scored_by, written
from map_settings import BUDGET, CHOOSING, RATES_AT, REFERENCE_EXAMPLES
from planned_runs import run_planned
from seeds import cell, difference

SIZES = (1_000, 5_000, 20_000)
MULTIPLES, SEEDS = (1, 2, 4, 8), 3
PER_SHARD, BULK_SHARDS, BATCH = 1_000, 20, 128
NOISY, CLEAN = "noisy", "clean"
BASE, MANY = "uniform", 10_000
BETTER = "learnability, 10,000 curated, a better reference"
INFOBATCH, ALONE, MANY_ALONE = "InfoBatch", "the 1,000 curated alone, uniform", "the 10,000 curated alone, uniform"
LEARNABILITY = {"policy": "learnability", **CHOOSING}
FILTER = {"policy": "filter", "keep": 0.5}
# What an arm changes in the run, and how many curated examples its reference was trained on, 0 where it has none; those alone
# for the last two.
ARMS: dict[str, tuple[dict[str, Any], int]] = {
    BASE: ({}, 0),
    "learnability": (LEARNABILITY, RATES_AT),
    "filter 50 %": (FILTER, RATES_AT),
    "auto": ({**CHOOSING, "policy": "auto"}, RATES_AT),
    "learnability, 10,000 curated": (LEARNABILITY, MANY),
    "filter 50 %, 10,000 curated": (FILTER, MANY),
    BETTER: (LEARNABILITY, MANY),
    INFOBATCH: ({"policy": "infobatch", "filter_ratio": 0.3}, 0),
    ALONE: ({}, RATES_AT),
    MANY_ALONE: ({}, MANY),
}
FIRST = ("uniform", "learnability")
# A reference as large as the learner, trained for four times as many examples as the others.
BETTER_EXAMPLES = 4 * REFERENCE_EXAMPLES
# Those that are run on the whole bulk under people's labels alone.
AT_ALL = ("learnability, 10,000 curated", "filter 50 %, 10,000 curated", MANY_ALONE)


class Point(NamedTuple):
    """One run: an arm on so many examples, under people's or under clean labels, at a multiple of the map's budget."""

    size: int
    arm: str
    multiple: int
    seed: int = 0
    labels: str = NOISY

    @property
    def name(self) -> str:
        arm = self.arm.replace(",", "").replace(" %", "").replace(" ", "-")
        labels = "" if self.labels == NOISY else f"{self.labels}-"
        return f"{arm}-{labels}{self.size}-{self.multiple}x-seed{self.seed}"


def planned() -> Iterator[Point]:
    """All runs, in their order: the first arms at all budgets but the largest, and the better reference at the two largest; all
    on the whole bulk at the least and the third budget, with all seeds; then what is left, by seeds."""
    everything = [
        Point(size, arm, multiple, seed, labels)
        for seed in range(SEEDS)
        for labels in (NOISY, CLEAN)
        for size in SIZES
        for multiple in MULTIPLES
        for arm in ARMS
        if is_run(arm, size, labels)
    ]
    first = [point for point in everything if point.arm in FIRST and point.multiple != MULTIPLES[-1] and not point.seed]
    on_all = [p for p in everything if p.size == SIZES[-1] and p.multiple in (1, 4) and p.arm != INFOBATCH]
    first += [
        p for p in everything if p.arm in (BASE, BETTER) and p.size == SIZES[-1] and p.multiple in (4, 8) and not p.seed
    ]
    yield from dict.fromkeys([*first, *on_all, *everything])


def is_run(arm: str, size: int, labels: str) -> bool:
    """The curated examples alone are the same for every bulk."""
    if arm == ALONE:
        return (size, labels) == (SIZES[0], NOISY)
    if arm == BETTER:
        return size == SIZES[-1]
    return arm not in AT_ALL or (size, labels) == (SIZES[-1], NOISY)


def run(folder: Path, *of: Any) -> dict[str, Any]:
    """Train the learner in one arm."""
    point = Point(*of)
    alone, (changes, curated) = point.arm in (ALONE, MANY_ALONE), ARMS[point.arm]
    dataset = dataset_of(folder, "curated", curated) if alone else bulk_of(folder, point.size, point.labels)
    about: dict[str, Any] = {}
    if curated and not alone:
        reference, table = reference_of(folder, point.arm, curated, dataset)
        changes = {**changes, "reference_scores": table}
        quality = evaluate_by_name(str(folder / "references" / reference), "bulk", load_config(folder / "curate.toml"))
        about = {"reference_top1": quality["top1"]}
    budget = point.multiple * BUDGET
    summary = learn(folder, "crossing", point.name, point.seed, dataset=dataset, budget_flops=budget, **changes)
    return {
        "name": point.name,
        "examples": point.size,
        "labels": point.labels,
        "arm": point.arm,
        "multiple": point.multiple,
        "seed": point.seed,
        "top1": summary["quality"]["top1"],
        **about,
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def reference_of(folder: Path, arm: str, curated: int, dataset: str) -> tuple[str, str]:
    """The name of an arm's reference, and its score table of the data set."""
    if arm == BETTER:
        trained_on, name = dataset_of(folder, "curated", curated), "reference-better"
        return name, scored_by(folder, name, trained_on, dataset, BETTER_EXAMPLES, "learner")
    return reference_name(curated, REFERENCE_EXAMPLES), score_table(folder, curated, dataset)


def key_of(line: dict[str, Any]) -> Point:
    return Point(line["examples"], line["arm"], line["multiple"], line["seed"], line.get("labels", NOISY))


def bulk_of(folder: Path, size: int, labels: str = NOISY) -> str:
    """The first shards of the bulk; under clean labels they are written again."""
    toml = folder / "curate.toml"
    config = load_config(toml)
    bulk, shards = config.datasets["bulk"], size // PER_SHARD
    if labels == NOISY and shards == BULK_SHARDS:
        return "bulk"
    name = f"bulk-{size}" if labels == NOISY else f"bulk-{labels}-{size}"
    where = "cifar10n/train" if labels == NOISY else name
    if name not in config.datasets:
        if labels == CLEAN:
            write_shards(folder / "data" / name, clean_examples(folder, shards))
        add_dataset(toml, name, {**bulk, "train": f"data/{where}/{{00000..{shards - 1:05d}}}.tar"})
    return name


def clean_examples(folder: Path, shards: int) -> Iterator[dict[str, Any]]:
    """The examples of the bulk's first shards under their clean labels."""
    config = load_config(folder / "curate.toml")
    about = pq.read_table(folder / config.datasets["bulk"]["analysis"], columns=["key", "clean_label"])
    clean = dict(zip(about["key"].to_pylist(), about["clean_label"].to_pylist(), strict=True))
    spec = find_dataset("bulk", config)
    for shard in list_shards(spec)[:shards]:
        for example in read_shard(spec, shard):
            assert isinstance(example, Example)
            yield {**written(example), "cls": str(clean[example.key]).encode()}


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 by arm and budget for each size, with what it is beside uniform and the epochs of uniform."""
    multiples = sorted({line["multiple"] for line in results})
    budgets = [f"{multiple * BUDGET / 1e12:g} TF" for multiple in multiples]
    lines = [f"| labels | examples | arm | {' | '.join(budgets)} |", "|---" * (len(budgets) + 3) + "|"]
    for labels, size in itertools.product((NOISY, CLEAN), SIZES):
        here = [line for line in results if (line.get("labels", NOISY), line["examples"]) == (labels, size)]
        base = [of(here, BASE, multiple) for multiple in multiples]
        if here:
            epochs = [f"{BATCH * found[0]['steps'] / size:.1f}" if found else "" for found in base]
            lines.append(row(labels, size, "epochs, uniform", epochs))
        for arm in (arm for arm in ARMS if any(line["arm"] == arm for line in here)):
            found = [by_seed(of(here, arm, multiple)) for multiple in multiples]
            lines.append(row(labels, size, arm, [cell([*shares.values()]) for shares in found]))
            if arm != BASE:
                more = [difference(shares, by_seed(others)) for shares, others in zip(found, base, strict=True)]
                lines.append(row(labels, size, f"{arm}, minus uniform", more))
    return "\n".join(lines)


def row(labels: str, size: int, arm: str, cells: list[str]) -> str:
    return f"| {labels} | {size:,} | {arm} | {' | '.join(cells)} |"


def of(results: list[dict[str, Any]], arm: str, multiple: int) -> list[dict[str, Any]]:
    return [line for line in results if (line["arm"], line["multiple"]) == (arm, multiple)]


def by_seed(found: list[dict[str, Any]]) -> dict[int, float]:
    return {line["seed"]: line["top1"] for line in found}


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run)
