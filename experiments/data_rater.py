"""DataRater in small (arXiv 2505.17895): a rater trained by meta-gradients, and a filter by its ratings, on CIFAR-10N.

    python experiments/data_rater.py FOLDER RESULTS.jsonl     # minutes for the rater, then half a minute a run on one core
    python experiments/data_rater.py --table RESULTS.jsonl    # its table in docs/findings-tables.md

The data, models and rates are those of `curated_map.py`, whose FOLDER it may share. The rater is as small as the online model:
of an image and its label it gives the logit of that label. An inner model, as small, takes `INNER` steps of gradient descent on
batches of the bulk, weighed by the softmax of the ratings. The loss of what comes out, on a batch of the 1,000 curated examples,
is differentiated through these steps for the rater's update. Inner models of several ages take turns, and begin anew when they
are old. Then the half of the bulk with the highest ratings is kept, and the learner trains uniformly on it. The FLOPs of the
rater's training are those that torch counts in one of its updates, times their number.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from curate.datasets.batches import decode_all
from curate.datasets.readers import Example
from curate.datasets.spec import find_dataset, load_config
from curate.scoring.loading import find_model, load_model
from curate.scoring.models import Model
from curated_map import add_examples, dataset_of, examples_of, learn
from map_settings import BASE, RATES_AT
from planned_runs import run_planned
from seeds import cell, difference
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

SEEDS, KEPT, SHARE = 5, "bulk-rated", 0.5
UPDATES, INNER, MODELS, OLD, BATCH = 1_000, 2, 4, 200, 128
RATER_LR, INNER_LR = 1e-3, 0.1
RATED = "DataRater's better half, uniform"
ARMS = (BASE, RATED)
Data = tuple[torch.Tensor, torch.Tensor]
Weights = dict[str, torch.Tensor]


def new_model(folder: Path, seed: int) -> Model:
    config = load_config(folder / "curate.toml")
    task = find_dataset("bulk", config).task
    return load_model(find_model("online", task=task, num_classes=10, config=config), seed=seed)


def data_of(model: Model, examples: list[Example]) -> Data:
    """(Pixels as the model takes them, labels)."""
    with ThreadPoolExecutor(1) as pool:
        pixels = torch.from_numpy(np.stack(decode_all(examples, model.geometry, pool)))
    return model.normalize(pixels), torch.tensor([int(example.target) for example in examples])


def logits_of(model: Model, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """A pass with these weights. BatchNorm takes the batch's own statistics, and keeps none."""
    model.module.train()
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    logits: torch.Tensor = functional_call(model.module, {**weights, **buffers}, (x,))
    return logits


def inner_step(model: Model, weights: Weights, batch: Data, weight_B: torch.Tensor, *, graph: bool) -> Weights:
    """One step of gradient descent on the weighed loss; with `graph` it can be differentiated."""
    x, y = batch
    loss = (weight_B * cross_entropy(logits_of(model, weights, x), y, reduction="none")).sum()
    grads = torch.autograd.grad(loss, [*weights.values()], create_graph=graph)
    return {name: w - INNER_LR * g for (name, w), g in zip(weights.items(), grads, strict=True)}


def trained_rater(folder: Path, bulk: Data, curated: Data) -> tuple[Model, float]:
    """(The rater, FLOPs of its training)."""
    rater, generator = new_model(folder, 0), torch.Generator().manual_seed(0)
    inner = [new_model(folder, 1 + i) for i in range(MODELS)]
    state = [fresh(model) for model in inner]
    ages = [OLD * i // MODELS for i in range(MODELS)]
    optimizer = torch.optim.Adam(rater.module.parameters(), RATER_LR)

    def drawn(data: Data) -> Data:
        rows = torch.randint(len(data[1]), (BATCH,), generator=generator)
        return data[0][rows], data[1][rows]

    def update(i: int) -> None:
        weights = state[i]
        for _ in range(INNER):
            x, y = batch = drawn(bulk)
            rating_B = logits_of(rater, dict(rater.module.named_parameters()), x).gather(1, y[:, None])[:, 0]
            weights = inner_step(inner[i], weights, batch, rating_B.softmax(0), graph=True)
        x, y = drawn(curated)
        loss = cross_entropy(logits_of(inner[i], weights, x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state[i] = {name: w.detach().requires_grad_() for name, w in weights.items()}
        if i == 0 and ages[0] % 100 == 0:
            print(f"rater: an inner model of age {ages[0]} has curated loss {loss.item():.3f}", flush=True)

    with FlopCounterMode(display=False) as counted:
        update(0)
    for number in range(1, UPDATES):
        i = number % MODELS
        if ages[i] >= OLD:
            inner[i] = new_model(folder, MODELS + number)
            state[i], ages[i] = fresh(inner[i]), 0
        update(i)
        ages[i] += 1
    return rater, float(counted.get_total_flops()) * UPDATES


def fresh(model: Model) -> Weights:
    return {name: w.detach().clone().requires_grad_() for name, w in model.module.named_parameters()}


@cache
def rated(folder: Path) -> dict[str, Any]:
    """Train the rater and write the better half of the bulk, where they are not there. What they cost, and how many labels of
    that half are wrong."""
    about, toml = folder / "rater.json", folder / "curate.toml"
    if about.exists():
        found: dict[str, Any] = json.loads(about.read_text())
        return found
    examples = [*examples_of(folder, "bulk")]
    model = new_model(folder, 0)
    bulk = data_of(model, examples)
    rater, flops = trained_rater(
        folder, bulk, data_of(model, [*examples_of(folder, dataset_of(folder, "curated", RATES_AT))])
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        ratings = [
            logits_of(rater, dict(rater.module.named_parameters()), x).gather(1, y[:, None])[:, 0]
            for x, y in zip(bulk[0].split(500), bulk[1].split(500), strict=True)
        ]
    order = torch.cat(ratings).argsort(descending=True, stable=True)
    best = [examples[i] for i in sorted(order[: int(SHARE * len(examples))].tolist())]
    bulk_entry = load_config(toml).datasets["bulk"]
    known = pq.read_table(folder / bulk_entry["analysis"], columns=["shard", "key", "clean_label"]).to_pylist()
    clean = {(row["shard"], row["key"]): row["clean_label"] for row in known}
    add_examples(folder, KEPT, best)
    made = {
        "rater_flops": flops + counted.get_total_flops(),
        "kept": len(best),
        "kept_wrong": sum(example.target != clean[example.shard, example.key] for example in best),
    }
    about.write_text(json.dumps(made))
    return made


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train the learner in one arm."""
    about = rated(folder) if arm == RATED else {}
    changes: dict[str, Any] = {"dataset": KEPT} if arm == RATED else {}
    name = f"{arm.replace(',', '').replace(chr(39), '').replace(' ', '-')}-seed{seed}"
    summary = learn(folder, "rated", name, seed, **changes)
    return {
        "arm": arm,
        "seed": seed,
        "top1": summary["quality"]["top1"],
        **about,
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "all_flops": summary["regimes"]["nothing_amortised"] + about.get("rater_flops", 0.0),
        "seconds": summary["took"],
    }


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 by arm, beside uniform, and FLOPs with those of the rater."""
    lines = ["| arm | top-1 | minus uniform | FLOPs of a run | with the rater's |", "|---" * 5 + "|"]
    for arm in ARMS:
        found = [line for line in results if line["arm"] == arm]
        here, base = ({r["seed"]: r["top1"] for r in results if r["arm"] == name} for name in (arm, BASE))
        more = "" if arm == BASE else difference(here, base)
        flops = [f"{value / 1e12:.2f} TF" for value in (found[0]["regimes"]["foundation"], found[0]["all_flops"])]
        lines.append(f"| {arm} | {cell([*here.values()])} | {more} | {' | '.join(flops)} |")
    return "\n".join(lines)


def planned() -> list[tuple[str, int]]:
    """(arm, seed) of all runs, in their order."""
    return [(arm, seed) for seed in range(SEEDS) for arm in ARMS]


def key_of(line: dict[str, Any]) -> tuple[str, int]:
    return line["arm"], line["seed"]


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run)
