"""Where choosing wins: arms x numbers of curated examples, each a complete run at one budget, on CIFAR-10N.

    python experiments/curated_map.py FOLDER RESULTS.jsonl     # half a minute a run on one AVX2 core; --list names the runs
    python experiments/curated_map.py --table RESULTS.jsonl    # the tables of docs/findings-tables.md

One process, one run after another, in the order of `planned`: stop it whenever, start it again, and it continues with
what is missing. FOLDER gets a curate.toml, the data, the references, the score tables and the runs; RESULTS one JSON
line for each finished run.

The bulk are 20,000 images of CIFAR-10N under one person's label each, 40 % of them wrong: a uniform run sees each about
once. 4,000 more of them are the validation split, by which rates are chosen. The curated examples are other images under
their clean label. The test is on 5,000 clean test images.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from curate.datasets.preparers import prepare
from curate.datasets.preparers.writer import write_shards
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import Split, list_shards
from curate.datasets.spec import add_dataset, add_model, find_dataset, load_config
from curate.pipelines.options import ScoreOptions
from curate.pipelines.score_reference import score_reference
from curate.scoring.loading import find_model
from curate.training import RunOptions, train
from curate.training.evaluate import evaluate_by_name
from map_settings import (
    ARMS,
    BASE,
    BUDGET,
    FIRST_OTHERS,
    FIRST_SEEDS,
    LR,
    MAIN,
    MODELS,
    NEVER,
    OTHERS,
    PRECISION,
    RATES,
    RATES_AT,
    REFERENCE_EXAMPLES,
    REFERENCE_LR,
    SEEDS,
    SIZES,
    UNIFORM_EXAMPLES,
    Arm,
)
from seeds import cell, difference


@dataclass(frozen=True)
class Cell:
    """One run of the map."""

    arm: str
    curated: int
    seed: int = 0
    lr: float = LR

    @property
    def name(self) -> str:
        arm = self.arm.replace(",", "").replace("+", "and").replace(" %", "").replace("'", "").replace(" ", "-")
        return f"{arm}-{self.curated}-lr{self.lr:g}-seed{self.seed}"


def planned() -> Iterator[Cell]:
    """All cells, in the order in which they are run: the main arms with the first seeds, the others with one seed, the rates at
    one size, the others with the first seeds, the main arms with all seeds, then what is left."""
    first = [cell for seed in range(FIRST_SEEDS) for cell in of_seed(seed, MAIN, SIZES)]
    first += of_seed(0, OTHERS, FIRST_OTHERS)
    first += [Cell(name, RATES_AT if arm.counted else 0, 0, lr) for lr in RATES for name, arm in MAIN.items()]
    first += [cell for seed in range(FIRST_SEEDS) for cell in of_seed(seed, OTHERS, FIRST_OTHERS[:1])]
    first += [cell for seed in range(SEEDS) for cell in of_seed(seed, MAIN, SIZES)]
    first += [cell for seed in range(SEEDS) for cell in of_seed(seed, OTHERS, FIRST_OTHERS)]
    yield from dict.fromkeys([*first, *(cell for seed in range(SEEDS) for cell in of_seed(seed, ARMS, SIZES))])


def of_seed(seed: int, arms: dict[str, Arm], sizes: tuple[int, ...]) -> Iterator[Cell]:
    yield from (Cell(arm, 0, seed) for arm, what in arms.items() if not what.counted)
    for curated in sizes:
        for name, arm in arms.items():
            if arm.counted and (curated or not arm.needs_curated):
                yield Cell(name, curated, seed)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(read_results(arguments.paths[-1])))
        return
    if arguments.list or len(arguments.paths) != 2:
        print(*(cell.name for cell in planned()), sep="\n")
        return
    folder, results = begin(arguments.paths)
    done = {line["name"] for line in read_results(results)}
    missing = ((cell.name, partial(run, folder, cell)) for cell in planned() if cell.name not in done)
    add_results(results, missing, arguments.seconds)


def argument_parser(about: str | None) -> argparse.ArgumentParser:
    """What this script and those that share its folder take."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="FOLDER RESULTS")
    parser.add_argument("--table", action="store_true", help="print the results, the last of the paths, as Markdown")
    parser.add_argument("--seconds", type=float, default=NEVER, help="begin no run after so many seconds")
    return parser


def begin(paths: list[Path]) -> tuple[Path, Path]:
    """The folder, with data and models in it, and the file of the results."""
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    folder, results = (path.resolve() for path in paths)
    set_up(folder)
    return folder, results


def add_results(path: Path, runs: Iterable[tuple[str, Callable[[], dict[str, Any]]]], seconds: float = NEVER) -> None:
    """Make runs, named, one after another, and add a line of results for each; begin none after so many seconds."""
    commit, started = commit_here(), time.perf_counter()
    for name, run in runs:
        if time.perf_counter() - started > seconds:
            return
        found = {**run(), "commit": commit}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        shown = f"top1 {found['top1']:.2%}, " if "top1" in found else ""
        print(f"{name}: {shown}{found['seconds']:.0f} s", flush=True)


def commit_here() -> str:
    """The commit of the code that runs; empty outside of a clone."""
    about = ("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    return subprocess.run(about, capture_output=True, text=True).stdout.strip()


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 by arm and number of curated examples at the rate of all; what that is beside uniform on the bulk; and every rate
    that was tried, with validation."""
    sizes = sorted({line["curated"] for line in results})

    def table(shown: Callable[[str, int], str], arms: Iterable[str]) -> list[str]:
        lines = [f"| arm | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
        return lines + [f"| {name} | {' | '.join(shown(name, size) for size in sizes)} |" for name in arms]

    def top1(name: str, size: int) -> dict[int, float]:
        """By seed."""
        n = size if ARMS[name].counted else 0  # else it is the same for all sizes
        return {
            line["seed"]: line["top1"]
            for line in results
            if (line["arm"], line["curated"], line["lr"]) == (name, n, LR)
        }

    def against_base(name: str, size: int) -> str:
        return difference(top1(name, size), top1(BASE, size))

    lines = table(lambda name, size: cell([*top1(name, size).values()]), ARMS)
    lines += ["", *table(against_base, [name for name in ARMS if name != BASE])]
    return "\n".join([*lines, *rates_tried(results)])


def rates_tried(results: list[dict[str, Any]]) -> list[str]:
    """The rates of seed 0 at one size, for the arms that have more than one."""
    at = [
        line
        for line in results
        if line["curated"] == (RATES_AT if ARMS[line["arm"]].counted else 0) and not line["seed"]
    ]
    several = {line["arm"] for line in at if line["lr"] != LR}
    at = [line for line in at if line["arm"] in several]
    head = ["", "| arm | rate | validation (noisy labels) | test |", "|---" * 4 + "|"] if at else []
    return head + [
        f"| {line['arm']} | {line['lr']:g} | {line['validation_top1']:.1%} | {line['top1']:.1%} |"
        for line in sorted(at, key=lambda line: (list(ARMS).index(line["arm"]), line["lr"]))
    ]


def set_up(folder: Path) -> None:
    """The data and models. `bulk` trains on 20 of the 40 shards; `validation` tests on the last four."""
    toml = folder / "curate.toml"
    prepare("cifar10n", folder / "data", toml, report=print)
    for name, entry in MODELS.items():
        add_model(toml, name, entry)
    cifar10n = load_config(toml).datasets["cifar10n"]
    held_out, test = ("data/cifar10n/train/{00036..00039}.tar", "data/cifar10n/test/{00000..00004}.tar")
    add_dataset(toml, "bulk", {**cifar10n, "train": "data/cifar10n/train/{00000..00019}.tar", "test": test})
    add_dataset(toml, "validation", {**cifar10n, "train": test, "test": held_out})


def dataset_of(folder: Path, kind: str, curated: int) -> str:
    """The data set of a kind with so many curated examples, made where it is not there."""
    name = kind if kind == "bulk" else f"{kind}-{curated}"
    toml = folder / "curate.toml"
    config = load_config(toml)
    if name in config.datasets:
        return name
    counts, _ = write_shards(folder / "data" / name, map(written, curated_examples(folder, curated)))
    train_on = [f"data/{name}/{{00000..{counts['shards'] - 1:05d}}}.tar"]
    bulk = config.datasets["bulk"]
    entry = {**bulk, "train": train_on if kind == "curated" else [bulk["train"], *train_on]}
    entry.pop("analysis", None)
    add_dataset(toml, name, entry)
    return name


def curated_examples(folder: Path, count: int) -> list[Example]:
    """The first `count` curated examples, a tenth of them of each class."""
    found: dict[Any, list[Example]] = {}
    for example in examples_of(folder, "cifar10n-curated"):
        found.setdefault(example.target, []).append(example)
    return [example for row in zip(*found.values(), strict=True) for example in row][:count]


def examples_of(folder: Path, dataset: str, split: Split = "train") -> Iterator[Example]:
    """The examples of a data set, in their order."""
    spec = find_dataset(dataset, load_config(folder / "curate.toml"))
    for shard in list_shards(spec, split):
        for example in read_shard(spec, shard):
            assert isinstance(example, Example)
            yield example


def add_examples(folder: Path, name: str, examples: Iterable[Example], split: Split = "train") -> None:
    """A data set with these examples in one split, and the bulk's in the other; nothing where it is there."""
    config = load_config(folder / "curate.toml")
    if name in config.datasets:
        return
    counts, _ = write_shards(folder / "data" / name, map(written, examples))
    entry = {**config.datasets["bulk"], split: f"data/{name}/{{00000..{counts['shards'] - 1:05d}}}.tar"}
    entry.pop("analysis", None)
    add_dataset(folder / "curate.toml", name, entry)


def written(example: Example) -> dict[str, Any]:
    return {"__key__": example.key, "png": example.image, "cls": str(example.target).encode()}


def reference_name(curated: int, examples: int) -> str:
    return f"reference-{curated}" if examples == REFERENCE_EXAMPLES else f"reference-{curated}-{examples}"


def score_table(folder: Path, curated: int, dataset: str, examples: int = REFERENCE_EXAMPLES) -> str:
    """Train the reference on the curated examples, or on the bulk where there are none, for so many examples drawn, and score a
    data set with it."""
    trained_on = dataset_of(folder, "curated", curated) if curated else "bulk"
    return scored_by(folder, reference_name(curated, examples), trained_on, dataset, examples)


@cache
def scored_by(
    folder: Path,
    name: str,
    trained_on: str,
    dataset: str,
    examples: int = REFERENCE_EXAMPLES,
    model: str = "reference",
    lr: float = REFERENCE_LR,
) -> str:
    """The score table of a data set by a reference of this name, which is trained where it is not there."""
    options = RunOptions.of(
        dataset=trained_on,
        learner=model,
        examples=examples,
        lr=lr,
        seed=100,
        precision=PRECISION,
        checkpoint_every=NEVER,
        evaluate=False,
        out=str(folder / "references"),
        name=name,
    )
    config = load_config(folder / "curate.toml")
    train(options, config=config, resume=True, report=quiet)
    spec = find_dataset(dataset, config)
    found = find_model(str(folder / "references" / name), task=spec.task, num_classes=spec.num_classes, config=config)
    in_this_process = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
    scoring = ScoreOptions(
        dataset=spec,
        reference=found,
        out=str(folder / "tables"),
        precision=PRECISION,
        logits=True,
        runner_options=in_this_process,
    )
    return score_reference(scoring, quiet).folder


def learn(folder: Path, out: str, name: str, seed: int, lr: float = LR, **changes: Any) -> dict[str, Any]:
    """Train the learner with the budget of all, on the bulk, unless `changes` say otherwise. Returns the run's summary, with
    the seconds that it `took` without evaluation."""
    options = RunOptions.of(
        **{"dataset": "bulk", "learner": "learner", "budget_flops": BUDGET, **changes},
        seed=seed,
        lr=lr,
        precision=PRECISION,
        selections_every=NEVER,
        checkpoint_every=NEVER,
        log_every=NEVER,
        out=str(folder / out),
        name=name,
    )
    summary = train(options, config=load_config(folder / "curate.toml"), resume=True, report=quiet)
    return {**summary, "took": summary["seconds"]["total"] - summary["seconds"]["evaluate"]}


def run(folder: Path, cell: Cell) -> dict[str, Any]:
    """Train a cell, and measure it on test and validation."""
    arm = ARMS[cell.arm]
    dataset = dataset_of(folder, arm.data, cell.curated)
    changes = dict(arm.changes)
    if arm.reference:
        changes["reference_scores"] = score_table(folder, cell.curated, dataset)
    if arm.own_past:
        examples = round(arm.own_past * UNIFORM_EXAMPLES)
        changes["reference_scores"] = scored_by(folder, "own-past", "bulk", dataset, examples, "learner", LR)
    if arm.pretrained:
        changes |= pretrained(folder, cell, arm.pretrained)
    if arm.prior:
        changes["prior_scores"] = score_table(folder, 0, dataset)
    if arm.mix:
        changes["mix"] = f"{dataset_of(folder, 'curated', cell.curated)}:{arm.mix:.0%}"
    summary = learn(folder, "runs", cell.name, cell.seed, cell.lr, dataset=dataset, **changes)
    return {
        "name": cell.name,
        "arm": cell.arm,
        "curated": cell.curated,
        "seed": cell.seed,
        "lr": cell.lr,
        "top1": summary["quality"]["top1"],
        "validation_top1": validation(folder, cell) if cell.lr != LR or cell.curated in (0, RATES_AT) else None,
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def pretrained(folder: Path, cell: Cell, share: float) -> dict[str, Any]:
    """Train the learner on the curated examples alone for this share of the budget. The rest of the run starts from there."""
    name, dataset = f"{cell.name}-first", dataset_of(folder, "curated", cell.curated)
    first = learn(
        folder, "runs", name, cell.seed, cell.lr, dataset=dataset, budget_flops=share * BUDGET, evaluate=False
    )
    return {"learner": str(folder / "runs" / name), "budget_flops": BUDGET - first["regimes"]["foundation"]}


def validation(folder: Path, cell: Cell) -> float:
    config = load_config(folder / "curate.toml")
    return evaluate_by_name(str(folder / "runs" / cell.name), "validation", config)["top1"]


def quiet(line: str) -> None:
    """Prints nothing."""


if __name__ == "__main__":
    main()
