"""ActiveCLIP, JEST and ACID on real pairs: icons and clip art chosen by references that were trained on emoji.

    python experiments/pairs.py FOLDER main       # 27 runs, about 40 minutes on 2 cores
    python experiments/pairs.py FOLDER swapped    # synthetic: 20, 40 and 60 % of the captions swapped; 9 runs, 8 minutes

All pictures are drawings of 32 px. FOLDER gets a curate.toml, the data, the references, the score tables and the runs;
whatever is finished there is reused. `main` calls `curate compare` for uniform, learnability (ActiveCLIP) and jest,
trains acid beside it from a larger reference, and measures every learner on Tux Paint's stamps too.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from curate.datasets.preparers import prepare
from curate.datasets.preparers.writer import write_analysis, write_shards
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import add_dataset, add_model, find_dataset, load_config
from curate.pipelines.options import ScoreOptions
from curate.pipelines.score_reference import score_reference
from curate.scoring.loading import find_model
from curate.scoring.settings import Precision
from curate.scoring.tasks.image_text import ImageText
from curate.studies.comparison import run_all
from curate.training import RunOptions, train
from curate.training.evaluate import evaluate_by_name
from findings import saved
from running import curate

BUDGET, SEEDS, FILTER_RATIO = 5e12, 3, 0.8
BUDGETS, LADDER, ACID_BUDGETS = (1.0, 2.0), (4.0,), (1.0,)
REFERENCE_EXAMPLES, REFERENCE_LR, ONLINE_LR = 60_000, 2e-3, 2e-3
SEARCH_LR = "5e-4,1e-3,2e-3,4e-3"
QUALITY = ImageText.quality
DATASET = "icons-for-emoji"
SWAPPED = (20, 40, 60)


def clip(tower: str, size: int, width: int, layers: int, embed_dim: int) -> dict[str, Any]:
    vision = {"image_size": size, "timm_model_name": tower, "timm_pool": "avg", "timm_proj": ""}
    text = {"context_length": 16, "vocab_size": 49408, "width": width, "heads": width // 16, "layers": layers}
    return {"config": {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}}


MODELS = {
    "learner": clip("small_resnet_w16", 32, 64, 2, 64),
    "online": clip("small_resnet_w8_plain", 16, 32, 1, 64),
    "reference": clip("small_resnet_w8", 32, 64, 2, 64),
    "teacher": clip("small_resnet", 32, 64, 2, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="+", choices=["main", "swapped"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    folder = arguments.folder.resolve()
    set_up(folder)
    if "main" in arguments.parts:
        print(real(folder, arguments.jobs, arguments.seeds), flush=True)
    if "swapped" in arguments.parts:
        print(synthetic(folder, arguments.jobs), flush=True)


def set_up(folder: Path) -> None:
    """The data, and one data set more: trained on the icons, tested on the emoji of the held-out vendor and concepts."""
    toml = folder / "curate.toml"
    for name in ("emoji", "icons"):
        prepare(name, folder / "data", toml, report=print)
    for name, entry in MODELS.items():
        add_model(toml, name, entry)
    known = load_config(toml).datasets
    tested = {key: known["emoji"][key] for key in ("test", "label", "classes", "templates")}
    described = "icons and clip art with their authors' names; tested on emoji of another vendor and of other concepts"
    add_dataset(toml, DATASET, {**known["icons"], **tested, "description": described})


def real(folder: Path, jobs: int, seeds: int) -> str:
    table, teacher_table = (score_table(folder, name, DATASET) for name in ("reference", "teacher"))
    shown = [",".join(f"{multiple:g}x" for multiple in some) for some in (BUDGETS, LADDER)]
    arguments = (
        *("compare", "--dataset", DATASET, "--learner", "learner", "--online", "online", "--online-lr", ONLINE_LR),
        *("--reference-scores", table, "--policies", "uniform,learnability,jest", "--budget-flops", BUDGET),
        *("--budgets", shown[0], "--ladder", shown[1], "--seeds", seeds, "--filter-ratio", FILTER_RATIO),
        *("--search-lr", SEARCH_LR, "--jobs", jobs, "--out", folder / "comparison"),
    )
    curate(*arguments, cwd=folder)
    runs = folder / "comparison" / "runs"
    config = load_config(folder / "curate.toml")
    jest = json.loads((runs / "jest-1x-seed0" / "config.json").read_text())
    acid = [
        RunOptions.from_dict(jest).but(
            policy="acid",
            reference_scores=teacher_table,
            budget_flops=multiple * BUDGET,
            seed=seed,
            out=str(folder / "acid"),
            name=f"acid-{multiple:g}x-seed{seed}",
        )
        for multiple in ACID_BUDGETS
        for seed in range(seeds)
    ]
    run_all(
        [p for p in acid if not Path(p.records.out, str(p.records.name), "summary.json").exists()],
        jobs,
        config,
        QUALITY,
        print,
    )

    ladder = [
        [summary(runs / f"uniform-{multiple:g}x-seed{seed}") for seed in range(seeds)] for multiple in BUDGETS + LADDER
    ]
    lines = []
    for policy in ("uniform", "learnability", "jest", "acid"):
        for multiple in {"uniform": BUDGETS + LADDER, "acid": ACID_BUDGETS}.get(policy, BUDGETS):
            where = folder / "acid" if policy == "acid" else runs
            folders = [where / f"{policy}-{multiple:g}x-seed{seed}" for seed in range(seeds)]
            found = [summary(one) for one in folders]
            stamps = [quality_on(one, "icons", folder) for one in folders]
            seconds = [s["seconds"]["total"] - s["seconds"]["evaluate"] for s in found]
            cells = (
                policy,
                f"{multiple * BUDGET / 1e12:g} TF",
                f"{found[0]['steps']:,}",
                spread([s["quality"][QUALITY] for s in found]),
                spread([s["quality"]["zero_shot_top1"] for s in found]),
                spread([s[QUALITY] for s in stamps]),
                *saved(found, ladder, QUALITY),
                f"{statistics.median(seconds):.0f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    head = (
        "policy | budget | updates | emoji: mean recall | zero-shot | stamps: mean recall | updates saved | "
        "compute saved | nothing amortised | seconds"
    )
    return "\n".join([f"| {head} |", "|---" * 10 + "|", *lines])


def synthetic(folder: Path, jobs: int) -> str:
    """What share of the swapped captions each policy chooses, at BUDGET, one seed: the mechanism, not a proof."""
    config = load_config(folder / "curate.toml")
    points = []
    for share in SWAPPED:
        dataset = swapped(folder, share)
        table = score_table(folder, "reference", dataset)
        for policy in ("uniform", "learnability", "jest"):
            options = RunOptions.of(
                dataset=dataset,
                learner="learner",
                policy=policy,
                online=None if policy == "uniform" else "online",
                reference_scores=None if policy == "uniform" else table,
                budget_flops=BUDGET,
                filter_ratio=FILTER_RATIO,
                lr=REFERENCE_LR,
                online_lr=ONLINE_LR,
                selections_every=5,
                out=str(folder / "swapped"),
                name=f"{policy}-{share}",
            )
            points.append((share, options))
    config = load_config(folder / "curate.toml")
    todo = [p for _, p in points if not Path(p.records.out, str(p.records.name), "summary.json").exists()]
    run_all(todo, jobs, config, QUALITY, print)
    lines = []
    for share, options in points:
        run = Path(options.records.out, str(options.records.name))
        chosen = (
            [f"{share} %"] * 3
            if options.selection.policy == "uniform"
            else chosen_swapped(folder, run, options.dataset)
        )
        recall = summary(run)["quality"][QUALITY]
        lines.append(f"| {share} % | {options.selection.policy} | {' | '.join(chosen)} | {recall:.1%} |")
    head = "| swapped | policy | chosen: first third | second | last | emoji: mean recall |"
    return "\n".join([head, "|---" * 6 + "|", *lines])


def chosen_swapped(folder: Path, run: Path, dataset: str) -> list[str]:
    """The share of swapped captions among what a run chose, in each third of its steps."""
    rows = duckdb.execute(
        "SELECT avg(a.swapped::INT) FROM read_parquet($selections) s JOIN read_parquet($analysis) a USING (shard, key) "
        "WHERE s.selected GROUP BY (3 * s.step) // $after ORDER BY (3 * s.step) // $after",
        {
            "selections": f"{run}/selections/*.parquet",
            "analysis": str(folder / "data" / dataset / "analysis.parquet"),
            "after": summary(run)["steps"] + 1,
        },
    ).fetchall()
    return [f"{share:.0%}" for (share,) in rows]


def swapped(folder: Path, percent: int) -> str:
    """The icons with this share of their captions dealt out anew among those pictures. SYNTHETIC."""
    name, toml = f"icons-swapped-{percent}", folder / "curate.toml"
    config = load_config(toml)
    if name in config.datasets:
        return name
    spec = find_dataset(DATASET, config)
    examples = [e for shard in list_shards(spec) for e in read_shard(spec, shard) if isinstance(e, Example)]
    random = np.random.default_rng(percent)
    places = random.permutation(len(examples))[: len(examples) * percent // 100]
    captions = [str(e.target) for e in examples]
    for place, giver in zip(places, np.roll(places, 1), strict=True):
        captions[place] = str(examples[giver].target)
    made = (
        {"__key__": e.key, "png": e.image, "txt": caption.encode()}
        for e, caption in zip(examples, captions, strict=True)
    )
    counts, placed = write_shards(folder / "data" / name, made)
    flags = [caption != e.target for e, caption in zip(examples, captions, strict=True)]
    write_analysis(folder / "data" / name / "analysis.parquet", placed, {"swapped": flags})
    entry = dict(config.datasets[DATASET])
    entry["train"] = f"data/{name}/{{00000..{counts['shards'] - 1:05d}}}.tar"
    entry["description"] = f"SYNTHETIC: icons, {percent} % of whose captions were dealt out anew"
    entry.pop("analysis", None)
    add_dataset(toml, name, entry)
    return name


def score_table(
    folder: Path, model: str, dataset: str, runner_options: tuple[str, ...] = (), precision: Precision | None = None
) -> str:
    """Train a reference on the emoji, then score a data set with it, where that was not done before."""
    config = load_config(folder / "curate.toml")
    options = RunOptions.of(
        dataset="emoji",
        learner=model,
        examples=REFERENCE_EXAMPLES,
        lr=REFERENCE_LR,
        augment="crop-flip",
        precision=precision,
        seed=100,
        out=str(folder / "references"),
        name=model,
    )
    train(options, config=config, resume=True, report=print)
    spec = find_dataset(dataset, config)
    reference = find_model(str(folder / "references" / model), task=spec.task, config=config)
    scoring = ScoreOptions(
        dataset=spec,
        reference=reference,
        out=str(folder / "scores"),
        embeddings=True,
        precision=precision,
        runner_options=runner_options,
    )
    return score_reference(scoring, print).folder


def quality_on(run: Path, dataset: str, folder: Path) -> dict[str, float]:
    """What a run's learner reaches on another data set's test split; kept beside the run."""
    path = run / f"quality-{dataset}.json"
    if not path.exists():
        path.write_text(json.dumps(evaluate_by_name(str(run), dataset, load_config(folder / "curate.toml"))))
    found: dict[str, float] = json.loads(path.read_text())
    return found


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def spread(values: list[float]) -> str:
    low, high = 100 * min(values), 100 * max(values)
    return f"{statistics.fmean(values):.1%} ({low:.1f}..{high:.1f})"


if __name__ == "__main__":
    main()
