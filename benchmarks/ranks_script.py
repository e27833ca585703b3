"""What two ranks do for `ranks.py`, under torchrun: all sides in turn, in the same two processes.

    torchrun --nproc-per-node 2 benchmarks/ranks_script.py FOLDER OUT.json ROUNDS

FOLDER has curate.toml with the data set `part` and the models `learner` and `scorer`, and a score table in scores/.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm.optim
import torch
from curate.datasets.spec import find_dataset, load_config
from curate.scoring.flops import step_cost
from curate.scoring.loading import find_model, load_model
from curate.scoring.selector import Selector
from curate.training.division import Division, received_rows
from curate.training.group import Group
from curate.training.options import RunOptions
from curate.training.run import train
from curate.training.superbatch import SuperBatches
from measuring import seconds_a_step
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

BATCH_SIZE, FILTER_RATIO, LANES = 128, 0.8, 2
# Images are decoded in the first epochs, whose shards lie with the ranks otherwise in each.
WARM_UP, STEPS = 8, 24
LARGE, CHOSEN, SIDE, LARGE_LANES, REPEATS = 20_480, 4096, 224, 32, 7
# Bytes of a message that takes its time by its size.
BUFFER = 1 << 24


def main() -> None:
    folder, out, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    group = Group.from_env()
    torch.set_num_threads(1)
    plain = PlainLoop(folder, group)
    sides: dict[str, Callable[[], float]] = {
        "one process, two threads": lambda: alone(folder, group),
        "two ranks": lambda: run_step(folder, "two", group, BATCH_SIZE),
        "two ranks apart": lambda: run_step(folder, f"apart-{group.rank}", Group(), BATCH_SIZE // 2),
        "plain loop": plain.step,
    }
    found: dict[str, Any] = {"seconds": {name: [] for name in sides}, "waiting": []}
    found |= {"flops": plain.flops, "weights": plain.weights}
    for i in range(rounds):
        for name in list(sides) if i % 2 == 0 else reversed(sides):
            found["seconds"][name].append(slowest(group, sides[name]()))
        found["waiting"].append(plain.waiting())
        if group.is_first:
            print(
                ", ".join(f"{name} {1000 * seconds[-1]:.0f} ms" for name, seconds in found["seconds"].items()),
                flush=True,
            )
    found["talks"] = talks_a_step(folder, group)
    found["messages"] = messages(group)
    found["large"] = [large_step(group, i) for i in range(1 + REPEATS)][1:]
    if group.is_first:
        out.write_text(json.dumps(found), encoding="utf-8")
    group.close()


def slowest(group: Group, seconds: float) -> float:
    return max(group.share(seconds))


def run_step(folder: Path, name: str, group: Group, batch_size: int, steps: int = STEPS) -> float:
    """Seconds of a step of `curate train`, after the first ones."""
    run = folder / "runs" / name
    if group.is_first:
        shutil.rmtree(run, ignore_errors=True)
    options = RunOptions.of(
        dataset="part",
        learner="learner",
        online="scorer",
        policy="learnability",
        reference_scores=str(folder / "scores"),
        batch_size=batch_size,
        filter_ratio=FILTER_RATIO,
        steps=steps,
        precision="fp32",
        augment="none",
        lanes=LANES,
        log_every=WARM_UP,
        evaluate=False,
        out=str(run.parent),
        name=name,
    )
    train(options, config=load_config(folder / "curate.toml"), report=lambda line: None, group=group)
    return seconds_a_step(group.first((run / "metrics.jsonl").read_text))


def alone(folder: Path, group: Group) -> float:
    """By rank 0 with the threads of both, while the other waits."""
    if not group.is_first:
        return 0.0
    torch.set_num_threads(group.size)
    try:
        return run_step(folder, "one", Group(), BATCH_SIZE)
    finally:
        torch.set_num_threads(1)


class PlainLoop:
    """Both models in DistributedDataParallel, trained on random examples: images decoded and normalised beforehand, no
    selection, no records."""

    def __init__(self, folder: Path, group: Group) -> None:
        config = load_config(folder / "curate.toml")
        spec = find_dataset("part", config)
        found = (
            find_model(name, task="classification", num_classes=spec.num_classes, config=config)
            for name in ("learner", "scorer")
        )
        models = [load_model(model) for model in found]
        data = SuperBatches(spec, 1000, views={"learner": models[0].geometry}, scores=str(folder / "scores"))
        batches = list(islice(data, LANES))
        data.close()
        self.images = models[0].normalize(torch.cat([batch.views["learner"] for batch in batches]))
        self.labels = torch.cat([torch.as_tensor(batch.targets) for batch in batches])
        learner, scorer = models
        cost, _ = step_cost(
            learner, scorer, scorer, sub_batch=BATCH_SIZE, super_batch=round(BATCH_SIZE / (1 - FILTER_RATIO))
        )
        self.flops = {"ours": cost.total, "plain": cost.learner_train + cost.online_train}
        self.weights = [sum(p.numel() for p in model.module.parameters()) for model in models]
        self.group = group
        bare = [model.module.to(memory_format=torch.channels_last).train() for model in models]
        self.modules = [DistributedDataParallel(module, gradient_as_bucket_view=True) for module in bare]
        self.optimizers = [
            timm.optim.create_optimizer_v2(module, opt="adamw", lr=2e-3, weight_decay=0.05) for module in bare
        ]

    def step(self) -> float:
        group, order = self.group, torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        started = time.perf_counter()
        for step in range(STEPS):
            if step == WARM_UP:
                started = time.perf_counter()
            first = step * BATCH_SIZE % (len(order) - BATCH_SIZE)
            chosen = order[first : first + BATCH_SIZE][group.rank :: group.size]
            x, y = self.images[chosen], self.labels[chosen]
            for module, optimizer in zip(self.modules, self.optimizers, strict=True):
                loss = cross_entropy(module(x), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return (time.perf_counter() - started) / (STEPS - WARM_UP)

    def waiting(self) -> float:
        """Seconds of the slower rank's step over those of a step, each rank by itself: what waiting for each other takes."""
        x, y = self.images[: BATCH_SIZE // self.group.size], self.labels[: BATCH_SIZE // self.group.size]
        module = self.modules[0].module
        own = []
        for _ in range(WARM_UP):
            started = time.perf_counter()
            cross_entropy(module(x), y).backward()
            module.zero_grad(set_to_none=True)
            own.append(time.perf_counter() - started)
        of_ranks = np.array(self.group.share(own))
        return float(of_ranks.max(axis=0).mean() / of_ranks.mean())


def talks_a_step(folder: Path, group: Group) -> float:
    """How often ranks talk in a step, beside averaging gradients."""
    counts, talking = [0], Group._talking

    def counting(self: Group) -> AbstractContextManager[None]:
        counts[0] += 1
        return talking(self)

    found = []
    with mock.patch.object(Group, "_talking", counting):
        for steps in (WARM_UP, 2 * WARM_UP):
            counts[0] = 0
            run_step(folder, "talks", group, BATCH_SIZE, steps)
            found.append(counts[0])
    return (found[1] - found[0]) / WARM_UP


def messages(group: Group) -> dict[str, float]:
    """Seconds of a small message, and of a large one that goes all to all, or is added up."""
    half = torch.zeros(BUFFER // 2, dtype=torch.uint8)
    parts = [half if r != group.rank else half[:0] for r in range(group.size)]
    whole = torch.zeros(BUFFER // 4)
    kinds: dict[str, tuple[Callable[[], object], int]] = {
        "small": (lambda: group.agree(), 200),
        "exchange": (lambda: group.exchange(parts, [len(part) for part in parts]), 9),
        "sum": (lambda: group.sum(whole), 9),
    }
    found = {"bytes": float(BUFFER)}
    for name, (talk, times) in kinds.items():
        seconds = []
        for _ in range(times):
            group.agree()
            started = time.perf_counter()
            talk()
            seconds.append(time.perf_counter() - started)
        found[name] = statistics.median(seconds)
    return found


def large_step(group: Group, step: int) -> dict[str, float]:
    """Seconds of each part of the choice among 20,480 examples with made-up scores. Rows of 224 pixels are real bytes."""
    division = Division.of_step(group, step, (LARGE, LARGE_LANES))
    division = replace(division, widths=[10, 10, 0])  # as every super-batch that is drawn
    chance = torch.Generator().manual_seed(1000 * step + group.rank)
    own = int((division.holder_B == group.rank).sum())
    losses = [torch.rand(own, generator=chance) for _ in range(2)]
    names = [["00000.tar"] * own, [f"{i:09d}" for i in range(own)]]
    selector = Selector("learnability", CHOSEN, seed=step)
    seconds: dict[str, float] = {}

    def timed(part: str, make: Callable[[], Any]) -> Any:
        group.agree()
        started = time.perf_counter()
        made = make()
        seconds[part] = slowest(group, time.perf_counter() - started)
        return made

    online, reference = timed("gather", lambda: division.whole_of_all(losses))
    selection = timed("select", lambda: selector(online_loss=online, reference_loss=reference))
    deal = division.deal(selection.index)
    places, among = deal.of_chosen()
    rows = torch.from_numpy(np.full((len(places), SIDE, SIDE, 3), group.rank, dtype=np.uint8))

    def exchange() -> None:
        division.deal(selection.index)
        received_rows(deal, [(among, rows)], names)

    timed("exchange", exchange)
    timed("copying", lambda: rows[among.keep])
    return {**seconds, "moved": deal.moved}


if __name__ == "__main__":
    main()
