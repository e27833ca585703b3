"""Is it the mixture of sources that helps, or the choosing within them? Icons chosen for emoji, by source, at one budget.

    python experiments/sources.py FOLDER RESULTS.jsonl      # a minute or two a run on one AVX2 core; continues
    python experiments/sources.py --table RESULTS.jsonl    # the tables of docs/findings-tables.md

Data, models and rates are those of `pairs.py`. FOLDER gets a curate.toml, the data, the reference, its score table, the
mixtures and the runs; RESULTS one JSON line for each finished run.

The bulk is written anew with one source in each shard. A source is an icon set of 4,000 images or more, all emoji sets
together, or what is left of a category of Iconify; a category of fewer than 1,000 images is among the other icons. A mixture
becomes a data set as large as the bulk: examples drawn at random within each source, in whole passes, so that none comes
twice before all of its source came once.

DoReMi (arXiv 2305.10429) and RegMix (arXiv 2407.01492) look for a mixture with models as small as the online model, on the
bulk at 16 px. RegMix is validated on the emoji that the reference was trained on; nothing here sees the test.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from curate.datasets.batches import decode_all
from curate.datasets.preparers.writer import write_shards
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import Split, list_shards
from curate.datasets.spec import add_dataset, find_dataset, load_config
from curate.scoring.forward import embed
from curate.scoring.loading import find_model, load_model
from curate.scoring.models import Model
from curate.scoring.settings import Precision
from curate.scoring.tasks.image_text import ImageText
from curate.training import RunOptions, train
from curate.training.evaluate import evaluate_by_name
from curated_map import argument_parser, commit_here, quiet, read_results
from map_settings import NEVER
from mixtures import BATCH, Pairs, Weights, doremi, drawn, grouped, regmix, within_sources, word_scores
from pairs import DATASET, FILTER_RATIO, ONLINE_LR, QUALITY, score_table, set_up
from seeds import cell, difference

BUDGET, LR, SEEDS, BULK = 1.5e12, 1e-3, 3, "sources"
PRECISION: Precision = "fp32"  # on every CPU; the default would be bf16 on some
IN_THIS_PROCESS = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
BASE, CHOOSING, MIXED_ONLY = "uniform", "learnability", "learnability's mixture, drawn at random"
LEARNABILITY = {"policy": "learnability", "online": "online", "online_lr": ONLINE_LR, "filter_ratio": FILTER_RATIO}
FILTER: dict[str, Any] = {"policy": "filter", "keep": 0.5}
BY_WORDS = "sources-by-words"
# What an arm changes in the run, and the name of the mixture that it trains on.
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    BASE: ({}, ""),
    CHOOSING: ({**LEARNABILITY, "selections_every": 1}, ""),
    MIXED_ONLY: ({}, "learnability"),
    "learnability within each source": ({"replay": CHOOSING}, ""),
    "DoReMi's mixture": ({}, "doremi"),
    "RegMix's mixture": ({}, "regmix"),
    "filter 50 %": (FILTER, ""),
    "filter 50 % of each source": ({**FILTER, "keep_by": "shard"}, ""),
    "50 % by the words of captions": ({"dataset": BY_WORDS}, ""),
    "the reference's emoji alone": ({"dataset": "emoji"}, ""),
}
FIRST = [*ARMS][:4]


@dataclass(frozen=True)
class Mixture:
    """Weights of the sources, and what finding them cost in all."""

    weights: dict[str, float]
    flops: float


def planned() -> list[tuple[str, int]]:
    """(arm, seed) in the order in which they are run: every arm once, then the first four with all seeds, then the others."""
    seeds = [(arms, seed) for arms, n in ((FIRST, 1), (ARMS, 1), (FIRST, SEEDS), (ARMS, SEEDS)) for seed in range(n)]
    return [*dict.fromkeys((arm, seed) for arms, seed in seeds for arm in arms)]


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    if arguments.table:
        print(tables(read_results(arguments.paths[-1])))
        return
    folder, results = (path.resolve() for path in arguments.paths)
    set_up(folder)
    write_bulk(folder)
    write_by_words(folder)
    commit, started = commit_here(), time.perf_counter()
    done = {(line["arm"], line["seed"]) for line in read_results(results)}
    for arm, seed in planned():
        if (arm, seed) in done:
            continue
        if time.perf_counter() - started > arguments.seconds:
            return
        line = {**run(folder, arm, seed), "commit": commit}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{arm}, seed {seed}: emoji {line['emoji']:.2%}, {line['seconds']:.0f} s", flush=True)


# The data.


def write_bulk(folder: Path) -> None:
    """The icons, tested on emoji, with one source in each shard."""
    toml = folder / "curate.toml"
    config = load_config(toml)
    if BULK in config.datasets:
        return
    analysis = pq.read_table(folder / "data" / "icons" / "analysis" / "train.parquet").to_pylist()
    names = grouped([(row["source"], row["category"]) for row in analysis])
    source_of = {(row["shard"], row["key"]): name for row, name in zip(analysis, names, strict=True)}
    spec = find_dataset(DATASET, config)
    by_source: dict[str, list[Example]] = {name: [] for name in sorted(set(names))}
    for shard in list_shards(spec):
        for example in read_shard(spec, shard):
            assert isinstance(example, Example)
            by_source[source_of[shard.name, example.key]].append(example)
    patterns = []
    for number, (name, examples) in enumerate(by_source.items()):
        counts, _ = write_shards(folder / "data" / BULK / f"{number:02d}", (written(e) for e in examples))
        patterns.append(f"data/{BULK}/{number:02d}/{{00000..{counts['shards'] - 1:05d}}}.tar")
        print(f"source {number:02d}: {name}, {len(examples):,} examples", flush=True)
    (folder / "sources.json").write_text(json.dumps({name: len(found) for name, found in by_source.items()}))
    add_entry(folder, BULK, patterns)


def add_entry(folder: Path, name: str, train_on: list[str]) -> None:
    entry = dict(load_config(folder / "curate.toml").datasets[DATASET])
    entry.pop("analysis", None)
    add_dataset(folder / "curate.toml", name, {**entry, "train": train_on})


def written(example: Example, copy: int = 0) -> dict[str, Any]:
    key = f"{example.key}-copy{copy}" if copy else example.key
    return {"__key__": key, "png": example.image, "txt": str(example.target).encode()}


def sizes_of(folder: Path) -> dict[str, int]:
    """How many examples of the bulk each source has, in the order of their numbers."""
    found: dict[str, int] = json.loads((folder / "sources.json").read_text())
    return found


def source_number(shard: str) -> int:
    """Of a shard's name in the bulk, such as 03--00001."""
    return int(shard.split("--")[0])


def dataset_of(folder: Path, name: str, mixture: Mixture) -> str:
    """The data set of a mixture, as large as the bulk, made where it is not there."""
    config = load_config(folder / "curate.toml")
    if name in config.datasets:
        return name
    spec = find_dataset(BULK, config)
    sizes = sizes_of(folder)
    by_source: list[list[Any]] = [[] for _ in sizes]
    for shard in list_shards(spec):
        by_source[source_number(shard.name)] += read_shard(spec, shard)
    weights = np.array([mixture.weights[source] for source in sizes])
    places = drawn([*sizes.values()], weights, sum(sizes.values()), np.random.default_rng(0))
    made = (written(by_source[source][row], copy) for source, row, copy in places)
    counts, _ = write_shards(folder / "data" / name, made)
    add_entry(folder, name, [f"data/{name}/{{00000..{counts['shards'] - 1:05d}}}.tar"])
    return name


def write_by_words(folder: Path) -> None:
    """The half of the bulk whose captions' words are likeliest to be those of the emoji that the reference was trained on."""
    config = load_config(folder / "curate.toml")
    if BY_WORDS in config.datasets:
        return
    bulk, emoji = (
        [e for shard in list_shards(spec) for e in read_shard(spec, shard) if isinstance(e, Example)]
        for spec in (find_dataset(name, config) for name in (BULK, "emoji"))
    )
    scores = word_scores([str(e.target) for e in bulk], [str(e.target) for e in emoji])
    best = np.sort(np.argsort(-scores, kind="stable")[: round(FILTER["keep"] * len(bulk))])
    kept = np.random.default_rng(0).permutation(best)
    counts, _ = write_shards(folder / "data" / BY_WORDS, (written(bulk[row]) for row in kept))
    add_entry(folder, BY_WORDS, [f"data/{BY_WORDS}/{{00000..{counts['shards'] - 1:05d}}}.tar"])


def new_proxy(folder: Path, seed: int) -> Model:
    config = load_config(folder / "curate.toml")
    return load_model(find_model("online", task=ImageText.name, config=config), seed=seed)


def pairs_of(folder: Path, dataset: str, model: Model, split: Split = "train") -> Pairs:
    """A data set's split as a model sees it, in memory."""
    spec = find_dataset(dataset, load_config(folder / "curate.toml"))
    pixels, tokens, source = [], [], []
    with ThreadPoolExecutor(1) as pool:
        for shard in list_shards(spec, split):
            examples: list[Any] = [*read_shard(spec, shard)]
            pixels += decode_all(examples, model.geometry, pool)
            tokens.append(model.tokenize([str(e.target) for e in examples]))
            source += [source_number(shard.name) if dataset == BULK else 0] * len(examples)
    return Pairs(torch.from_numpy(np.stack(pixels)), torch.cat(tokens), np.array(source))


def chosen_mixture(folder: Path) -> tuple[Weights, float]:
    """What learnability trained on with seed 0, by source; its whole run, with the reference, is what finding that cost."""
    run_folder = folder / "runs" / name_of(CHOOSING, 0)
    summary = json.loads((run_folder / "summary.json").read_text())
    counts = np.zeros(len(sizes_of(folder)))
    for file in (run_folder / "selections").glob("*.parquet"):
        table = pq.read_table(file)
        for shard, count in Counter(table.filter(table["selected"])["shard"].to_pylist()).items():
            counts[source_number(shard)] += count
    return counts / counts.sum(), summary["regimes"]["nothing_amortised"]


def mixture_of(folder: Path, name: str) -> Mixture:
    """A mixture by name, found where it is not there."""
    path = folder / f"mixture-{name}.json"
    if not path.exists():

        def make(seed: int) -> Model:
            return new_proxy(folder, seed)

        if name == "learnability":
            weights, flops = chosen_mixture(folder)
        elif name == "doremi":
            weights, flops = doremi(make, pairs_of(folder, BULK, make(0)))
        else:
            bulk, emoji = (pairs_of(folder, dataset, make(0)) for dataset in (BULK, "emoji"))
            weights, flops = regmix(make, bulk, emoji, folder / "regmix-proxies.jsonl")
        by_source = dict(zip(sizes_of(folder), weights.tolist(), strict=True))
        path.write_text(json.dumps({"weights": by_source, "flops": flops}))
    return Mixture(**json.loads(path.read_text()))


# Runs.


def name_of(arm: str, seed: int) -> str:
    return f"{arm.replace(',', '').replace(' %', '').replace(chr(39), '').replace(' ', '-')}-seed{seed}"


def redrawn(folder: Path, seed: int) -> str:
    """The folder of learnability's run with its choices drawn anew: the scores are those that it recorded, and of each source
    as many are chosen as its part of the super-batch."""
    original, made = folder / "runs" / name_of(CHOOSING, seed), folder / "redrawn" / f"seed{seed}"
    if made.exists():
        return str(made)
    partial_folder = made.with_suffix(".partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    shutil.copytree(original, partial_folder, ignore=shutil.ignore_patterns("checkpoints"))
    generator = torch.Generator().manual_seed(seed)
    for file in sorted((partial_folder / "selections").glob("*.parquet")):
        table = pq.read_table(file)
        steps, scores = table["step"].to_numpy(), table["score"].to_numpy()
        source = np.array([source_number(shard) for shard in table["shard"].to_pylist()])
        selected = np.zeros(len(steps), dtype=bool)
        for step in np.unique(steps):
            rows = np.flatnonzero(steps == step)
            selected[rows] = within_sources(torch.from_numpy(scores[rows]), source[rows], BATCH, generator)
        column = table.schema.get_field_index("selected")
        pq.write_table(table.set_column(column, "selected", pa.array(selected)), file)
    partial_folder.rename(made)
    return str(made)


@cache
def scores_of(folder: Path) -> str:
    """The bulk's score table, by the reference that was trained on emoji."""
    return score_table(folder, "reference", BULK, IN_THIS_PROCESS, PRECISION)


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train the learner in one arm, and measure it on emoji and stamps."""
    changes, mixture_name = {**ARMS[arm][0]}, ARMS[arm][1]
    found = mixture_of(folder, mixture_name) if mixture_name else None
    dataset = dataset_of(folder, f"mixture-{mixture_name}", found) if found else BULK
    replayed = None
    if "replay" in changes:
        replayed = json.loads((folder / "runs" / name_of(CHOOSING, seed) / "summary.json").read_text())
        changes |= {"replay": redrawn(folder, seed), "steps": replayed["steps"]}
    elif "policy" in changes:
        changes["reference_scores"] = scores_of(folder)
    budget = {} if replayed else {"budget_flops": BUDGET}
    options = RunOptions.of(
        **{"dataset": dataset, "learner": "learner", "selections_every": NEVER, **budget, **changes},
        seed=seed,
        lr=LR,
        precision=PRECISION,
        checkpoint_every=NEVER,
        log_every=20,
        out=str(folder / "runs"),
        name=name_of(arm, seed),
    )
    config = load_config(folder / "curate.toml")
    summary = train(options, config=config, resume=True, report=quiet)
    stamps = evaluate_by_name(str(folder / "runs" / name_of(arm, seed)), "icons", config, PRECISION)
    regimes = (replayed or summary)["regimes"]  # a replay is charged what the run whose scores it uses was
    return {
        "arm": arm,
        "seed": seed,
        "emoji": summary["quality"][QUALITY],
        "emoji_rank": rank_on_test(folder, folder / "runs" / name_of(arm, seed)),
        "stamps": stamps[QUALITY],
        "steps": summary["steps"],
        "run_flops": regimes["foundation"],
        "all_flops": regimes["nothing_amortised"] + (found.flops if found else 0.0),
        "mixture": found.weights if found else {},
        "bulk": sizes_of(folder) if arm == BASE else {},
        "seconds": summary["seconds"]["total"] - summary["seconds"]["evaluate"],
    }


def rank_on_test(folder: Path, run_folder: Path) -> float:
    """At which share of the test's captions an image's own one comes, and the other way: 0 is first, 0.5 is chance. Less noisy
    than recall."""
    config = load_config(folder / "curate.toml")
    model = load_model(find_model(str(run_folder), task=ImageText.name, config=config), trained=True)
    pairs = pairs_of(folder, "emoji", model, "test")
    with torch.no_grad():
        image_ND, text_ND = embed(model.module, model.normalize(pairs.pixels), pairs.tokens)
    z_NN = image_ND @ text_ND.T
    before = (z_NN > z_NN.diagonal()[:, None]).float().mean() + (z_NN > z_NN.diagonal()).float().mean()
    return before.item() / 2


def tables(results: list[dict[str, Any]]) -> str:
    """Quality by arm, and what it is more than uniform's and than learnability's with the same seed; costs; the mixtures."""
    arms = [arm for arm in ARMS if any(line["arm"] == arm for line in results)]

    def of(arm: str, what: str) -> dict[int, float]:
        return {line["seed"]: line[what] for line in results if line["arm"] == arm}

    def measured(arm: str, what: str) -> list[str]:
        found = of(arm, what)
        beside = ("" if other == arm else difference(found, of(other, what)) for other in (BASE, CHOOSING))
        return [cell([*found.values()]), *beside]

    beside = "beside uniform | beside learnability"
    lines = [
        f"| arm | emoji: mean recall | {beside} | emoji: rank | {beside} | stamps: mean recall |",
        "|---" * 8 + "|",
    ]
    for arm in arms:
        cells = (*measured(arm, "emoji"), *measured(arm, "emoji_rank"), measured(arm, "stamps")[0])
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", "| arm | updates | FLOPs of the run | with all that it needs |", "|---" * 4 + "|"]
    for arm in arms:
        run_TF, all_TF = (statistics.fmean(of(arm, what).values()) / 1e12 for what in ("run_flops", "all_flops"))
        lines.append(f"| {arm} | {max(of(arm, 'steps').values())} | {run_TF:.2f} TF | {all_TF:.2f} TF |")
    return "\n".join([*lines, "", *mixtures_table(results)])


def mixtures_table(results: list[dict[str, Any]]) -> list[str]:
    """Sources in per cent: the bulk's, and every mixture's."""
    sizes: Mapping[str, int] = next((line["bulk"] for line in results if line["bulk"]), {})
    mixtures = {line["arm"]: line["mixture"] for line in results if line["mixture"]}
    lines = [f"| source | examples | bulk | {' | '.join(mixtures)} |", "|---" * (3 + len(mixtures)) + "|"]
    for source, size in sizes.items():
        shares = [size / sum(sizes.values()), *(weights[source] for weights in mixtures.values())]
        lines.append(f"| {source} | {size:,} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return lines


if __name__ == "__main__":
    main()
