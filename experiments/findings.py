"""The tables of docs/findings.md, each from real runs on CIFAR-10N. Whatever is finished in the folder is reused.

    python experiments/findings.py FOLDER main            # 51 runs, about 90 minutes on 2 cores
    python experiments/findings.py FOLDER filter-ratio    # or any other name of TABLES: 5 to 25 minutes each on 2 cores
    python experiments/findings.py FOLDER --list

FOLDER gets a curate.toml, the data, the references, the score tables and the runs. `main` calls `curate compare`; every
other table trains the same learner for BUDGET under one change a row, three seeds each, and prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from curate.datasets.preparers import prepare
from curate.datasets.preparers.writer import write_shards
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import Config, add_dataset, add_model, find_dataset, load_config
from curate.pipelines.options import ScoreOptions
from curate.pipelines.score_reference import score_reference
from curate.reports.savings import saving
from curate.scoring.flops import forward_flops
from curate.scoring.loading import find_model, load_model
from curate.studies.comparison import run_all
from curate.training import RunOptions, train
from findings_settings import BUDGET, DEFAULTS, LADDERS, LR, MODELS, SCORER_LR, SEEDS, TABLES, Reference, Row
from running import command, curate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tables", nargs="*", metavar="TABLE")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list or not arguments.tables:
        print("main", *TABLES, "probe", sep="\n")
        return
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    folder = arguments.folder.resolve()
    prepare("cifar10n", folder / "data", folder / "curate.toml", report=print)
    for name, entry in MODELS.items():
        add_model(folder / "curate.toml", name, entry)
    for name in arguments.tables:
        if name == "main":
            compare(folder, arguments.jobs, arguments.seeds)
        elif name == "probe":
            probe(folder, arguments.jobs)
        else:
            seeds = 1 if name == "learning-rates" else arguments.seeds
            print(f"\n{name}\n\n{table(folder, TABLES[name], arguments.jobs, seeds)}", flush=True)


def compare(folder: Path, jobs: int, seeds: int) -> None:
    """The comparison of issue and README: five policies, budgets 0.5x to 2x, uniform's ladder up to 8x."""
    scores = score_table(folder, Reference(), "cifar10n")
    arguments = (
        *("compare", "--dataset", "cifar10n", "--learner", "learner", "--online", "scorer48", "--online-lr", SCORER_LR),
        *("--reference-scores", scores, "--policies", "uniform,hard-learner,easy-reference,learnability,rho"),
        *("--budget-flops", BUDGET, "--budgets", "0.5x,1x,2x", "--ladder", "4x,8x", "--seeds", seeds),
        *("--filter-ratio", 0.8, "--search-lr", "5e-4,1e-3,2e-3,4e-3", "--jobs", jobs, "--out", folder / "comparison"),
    )
    curate(*arguments, cwd=folder)


def probe(folder: Path, jobs: int) -> None:
    """What `curate plan --probe` says at a fifth of the tables' budget, where their rows say what came out at all of it."""
    for label, reference, dataset in (
        ("clean reference, worse_label", Reference(), "cifar10n"),
        ("noisy reference (the same 40,000), worse_label", Reference(dataset="cifar10n"), "cifar10n"),
        ("clean reference, aggre_label", Reference(), "cifar10n-aggre_label"),
        ("clean reference, clean_label", Reference(), "cifar10n-clean_label"),
    ):
        scores = score_table(folder, reference, dataset)
        print(f"\n{label}\n", flush=True)
        arguments = (
            *(
                "plan",
                "--dataset",
                dataset,
                "--learner",
                "learner",
                "--online",
                "scorer48",
                "--reference-scores",
                scores,
            ),
            *("--budget-flops", BUDGET, "--filter-ratio", 0.8, "--lr", LR, "--online-lr", SCORER_LR, "--probe", "20%"),
            *("--jobs", jobs, "--out", folder / "probes" / f"{dataset}-{reference.name}"),
        )
        subprocess.run(command(*arguments), cwd=folder, check=True)


def table(folder: Path, rows: list[Row], jobs: int, seeds: int) -> str:
    """Run what is missing of every row and seed, and of uniform's ladder of budgets for every data set and learner.

    Markdown: quality, share of wrong labels among what was chosen, and what was saved at equal quality.
    """
    made = {row.label: [point(folder, row, seed) for seed in range(seeds)] for row in rows}
    selecting = [row for row in rows if row.changes.get("policy") != "uniform"]
    uniform = {setting(row): uniform_at(folder, row, seeds, 1.0) for row in selecting}
    run_missing(folder, [p for points in (*made.values(), *uniform.values()) for p in points], jobs)
    rungs = {}
    for key in uniform:
        reached = [top1_of(made[row.label]) for row in selecting if setting(row) == key]
        needed = needed_rungs(LADDERS.get(key, (0.5, 1.0, 2.0)), top1_of(uniform[key]), reached)
        same = next(row for row in selecting if setting(row) == key)
        rungs[key] = [uniform_at(folder, same, seeds, multiple) for multiple in needed]
    run_missing(folder, [p for ladder in rungs.values() for points in ladder for p in points], jobs)
    head = (
        "clean top-1 | min..max | n | spread of stored losses | wrong labels chosen | updates | updates saved | "
        "compute saved | nothing amortised | online 1/ | seconds"
    )
    lines = [f"| | {head} |", "|---" * 12 + "|"]
    for row in rows:
        found = [summary_of(p) for p in made[row.label]]
        top1 = [100 * summary["quality"]["top1"] for summary in found]
        seconds = statistics.median(s["seconds"]["total"] - s["seconds"]["evaluate"] for s in found)
        cells = (
            row.label,
            f"{statistics.fmean(top1):.1f} %",
            f"{min(top1):.1f}..{max(top1):.1f}",
            len(top1),
            spread(folder, row),
            wrong_labels(folder, row, made[row.label]),
            f"{found[0]['steps']:,}",
            *saved(found, [[summary_of(p) for p in rung] for rung in rungs.get(setting(row), [])]),
            ratio(folder, found[0]),
            f"{seconds:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def setting(row: Row) -> tuple[str, str]:
    return row.dataset, str({**DEFAULTS, **row.changes}["learner"])


def uniform_at(folder: Path, row: Row, seeds: int, multiple: float) -> list[RunOptions]:
    """Uniform's complete runs at a multiple of BUDGET, with this row's data set, learner and learning rate."""
    same = {key: value for key, value in row.changes.items() if key in ("learner", "lr")}
    uniform = replace(row, changes={"policy": "uniform", **same}, reference=None)
    return [point(folder, uniform, seed, multiple) for seed in range(seeds)]


def needed_rungs(ladder: tuple[float, ...], base: float, reached: list[float]) -> list[float]:
    """Those of a ladder between which the qualities reached can lie: rungs above 1 only where some beat `base`."""
    above, below = any(q > base for q in reached), any(q <= base for q in reached)
    return [multiple for multiple in ladder if multiple == 1 or (above if multiple > 1 else below)]


def run_missing(folder: Path, points: list[RunOptions], jobs: int) -> None:
    todo = list({summary_path(p): p for p in points if not summary_path(p).exists()}.values())
    run_all(todo, jobs, load_config(folder / "curate.toml"), "top1", lambda line: print(f"  {line}", flush=True))


def top1_of(points: list[RunOptions]) -> float:
    return statistics.fmean(summary_of(p)["quality"]["top1"] for p in points)


def saved(
    found: list[dict[str, Any]], rungs: list[list[dict[str, Any]]], quality_name: str = "top1"
) -> tuple[str, str, str]:
    """Shares saved of learner updates, and of total compute in the foundation regime and with nothing amortised, read
    between uniform's mean qualities."""
    if found[0]["policy"] == "uniform":
        return "", "", ""

    def mean(runs: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.fmean(map(value, runs))

    def quality(run: dict[str, Any]) -> float:
        return float(run["quality"][quality_name])

    costs: tuple[Callable[[dict[str, Any]], float], ...] = (
        lambda run: run["steps"],
        lambda run: run["regimes"]["foundation"],
        lambda run: run["regimes"]["nothing_amortised"],
    )
    qualities = [mean(rung, quality) for rung in rungs]
    updates, compute, whole = (
        str(saving(mean(found, cost), [mean(rung, cost) for rung in rungs], qualities, mean(found, quality)))
        for cost in costs
    )
    return updates, compute, whole


def spread(folder: Path, row: Row) -> str:
    """Standard deviation of the losses in the score table, in nats: what is known before any training."""
    if row.reference is None:
        return ""
    pattern = f"{score_table(folder, row.reference, row.dataset)}/*.parquet"
    ((deviation,),) = duckdb.execute("SELECT stddev(loss) FROM read_parquet($pattern)", {"pattern": pattern}).fetchall()
    return f"{deviation:.2f}"


def wrong_labels(folder: Path, row: Row, points: list[RunOptions]) -> str:
    """The share of wrong labels among what these runs selected: analysis only."""
    if points[0].selection.policy == "uniform":
        return ""
    column = row.dataset.partition("-")[2]
    column = column if column.endswith(("label", "label1")) else "worse_label"
    analysis = folder / "data" / "cifar10n" / "analysis" / "train.parquet"
    selections = [f"{p.records.out}/{p.records.name}/selections/*.parquet" for p in points]
    ((share,),) = duckdb.execute(
        f"SELECT avg((a.{column} <> a.clean_label)::INT) FROM read_parquet($selections) s "
        "JOIN read_parquet($analysis) a USING (key) WHERE s.selected",
        {"selections": selections, "analysis": str(analysis)},
    ).fetchall()
    return f"{share:.0%}"


def ratio(folder: Path, summary: dict[str, Any]) -> str:
    if not summary["online"]:
        return ""
    config = load_config(folder / "curate.toml")
    sizes = [
        forward_flops(load_model(find_model(summary[kind], task="classification", num_classes=10, config=config)))
        for kind in ("learner", "online")
    ]
    return f"{sizes[0].per_example / sizes[1].per_example:.0f}"


def point(folder: Path, row: Row, seed: int, multiple: float = 1.0) -> RunOptions:
    """The run of a row and seed. Its name is drawn from what it does, so that tables share what they have in common."""
    dataset_of(folder, row.dataset)
    known = {**DEFAULTS, **row.changes}
    options = RunOptions.of(
        dataset=row.dataset,
        budget_flops=multiple * BUDGET,
        seed=seed,
        selections_every=5,
        reference_scores=score_table(folder, row.reference, row.dataset) if row.reference else None,
        **known,
    )
    changed = [f"{key}={value}" for key, value in sorted(known.items()) if value != DEFAULTS.get(key)]
    changed += [] if multiple == 1 else [f"{multiple:g}x"]
    reference = [] if row.reference is None else [row.reference.name]
    name = re.sub(r"[^A-Za-z0-9._=]+", "-", " ".join([row.dataset, *changed, *reference, f"seed{seed}"]))
    return options.but(out=str(folder / "runs"), name=name)


def summary_path(options: RunOptions) -> Path:
    return Path(options.records.out, str(options.records.name), "summary.json")


def summary_of(options: RunOptions) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(summary_path(options).read_text())
    return summary


@cache
def score_table(folder: Path, reference: Reference, dataset: str) -> str:
    """Train the reference and score the data set with it, where that was not done before."""
    dataset_of(folder, reference.dataset)
    config = dataset_of(folder, dataset)
    name = reference.name
    options = RunOptions.of(
        dataset=reference.dataset,
        learner=reference.model,
        examples=reference.examples,
        lr=SCORER_LR,
        seed=100,
        out=str(folder / "references"),
        name=name,
    )
    train(options, config=config, resume=True, report=quiet)
    spec = find_dataset(dataset, config)
    model = find_model(str(folder / "references" / name), task=spec.task, num_classes=spec.num_classes, config=config)
    return score_reference(ScoreOptions(dataset=spec, reference=model, out=str(folder / "scores")), quiet).folder


def dataset_of(folder: Path, name: str) -> Config:
    """Make `NAME-COLUMN` (the same pictures under another column's labels) or `NAME-5-shards`, where it is not there."""
    toml = folder / "curate.toml"
    config = load_config(toml)
    if name in config.datasets:
        return config
    base, _, kind = name.partition("-curated-") if "-curated-" in name else name.partition("-")
    source = base + "-curated" if "-curated-" in name else base
    entry = dict(config.datasets[source])
    if kind.endswith("-shards"):
        spec = find_dataset(source, config)
        entry["train"] = [shard.url for shard in list_shards(spec)[: int(kind.removesuffix("-shards"))]]
    else:
        counts = write_shards(folder / "data" / name, relabelled(config, source, kind), per_shard=1000)[0]
        entry["train"] = f"data/{name}/{{00000..{counts['shards'] - 1:05d}}}.tar"
        entry.pop("analysis", None)
    add_dataset(toml, name, entry)
    return load_config(toml)


def relabelled(config: Config, source: str, column: str) -> Iterator[dict[str, Any]]:
    spec = find_dataset(source, config)
    known = pq.read_table(str(Path(str(config.path)).parent / str(config.datasets[source]["analysis"])))
    labels = dict(zip(known["key"].to_pylist(), known[column].to_pylist(), strict=True))
    for shard in list_shards(spec):
        for example in read_shard(spec, shard):
            assert isinstance(example, Example)
            yield {"__key__": example.key, "png": example.image, "cls": str(labels[example.key]).encode()}


def quiet(line: str) -> None:
    """Prints nothing."""


if __name__ == "__main__":
    main()
