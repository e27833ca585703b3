"""InfoBatch's public code beside `--policy infobatch`: the same data, learner, rate, updates and seeds.

    git clone https://github.com/NUS-HPC-AI-Lab/InfoBatch
    python experiments/beside_infobatch.py FOLDER RESULTS.jsonl --public InfoBatch    # half a minute a run on one AVX2 core
    python experiments/beside_infobatch.py --table RESULTS.jsonl

The setting is that of `crossing.py`, whose FOLDER and runs it shares: 1,000 examples, two of the map's budgets. Their wrapper of
the data set, sampler and weights are used as they are; optimizer, augmentation, schedule and test are those of this package, so
that nothing differs but what prunes. With a rate of 0 theirs draws plain epochs, as a check of that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crossing import BASE, BATCH, Point, bulk_of, by_seed
from crossing import run as run_ours
from curate.datasets.batches import decoded_batches
from curate.datasets.readers import read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import find_dataset, load_config
from curate.scoring.loading import find_model, load_model
from curate.training.augment import augment
from curate.training.evaluate import evaluate
from curate.training.schedule import learning_rate
from curate.training.trainee import Trainee
from curate.training.weighing import Weighed
from map_settings import LR
from planned_runs import run_planned
from seeds import cell, difference

SIZE, MULTIPLE, SEEDS, WARMUP, RATE = 1_000, 2, 3, 0.05, 0.5
UNIFORM, OURS, PLAIN, THEIRS = "ours, uniform", "ours, infobatch", "theirs, nothing pruned", "theirs"
ARMS = (UNIFORM, OURS, PLAIN, THEIRS)
CPU = torch.device("cpu")


def of_ours(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    policy = BASE if arm == UNIFORM else "InfoBatch"
    found = run_ours(folder, *Point(SIZE, policy, MULTIPLE, seed))
    return {"arm": arm, "seed": seed, "top1": found["top1"], "steps": found["steps"], "seconds": found["seconds"]}


def of_theirs(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train by their sampler for as many updates as ours."""
    from infobatch import InfoBatch  # type: ignore[import-not-found]

    steps = of_ours(folder, UNIFORM, seed)["steps"]
    rate = RATE if arm == THEIRS else 0.0
    config = load_config(folder / "curate.toml")
    data = find_dataset(bulk_of(folder, SIZE), config)
    model = load_model(find_model("learner", task=data.task, num_classes=10, config=config), seed=seed)
    trainee = Trainee(model, lr=LR, weighs=True, device=CPU)
    # Passes over what is left of the data: they fix when theirs stops pruning, so they are counted beforehand.
    passes = counted_passes(steps, SIZE, rate)
    pruned = InfoBatch(torch.utils.data.TensorDataset(*images_of(data, model)), passes, rate)
    loader = torch.utils.data.DataLoader(pruned, batch_size=BATCH, sampler=OncePerPass(pruned.sampler), drop_last=True)
    random, started, step, begun = torch.Generator().manual_seed(seed + 1000), time.perf_counter(), 0, 0
    assert trainee.weighed is not None
    while step < steps:
        begun += 1
        for pixels, targets in loader:
            weighed = Weighed(targets, pruned.weights[pruned.cur_batch_index])
            share = learning_rate(step, steps, 1.0, round(WARMUP * steps))
            trainee.step(augment(pixels, "crop-flip", random), weighed, share)
            pruned.update(trainee.weighed.of_batch().clone())
            step += 1
            if step == steps:
                break
    seconds = time.perf_counter() - started
    quality = evaluate(model, data, device=CPU, precision="fp32")
    share = pruned.get_pruned_count() / (begun * SIZE)
    about = {"passes": begun, "planned_passes": passes, "pruned": share, "seconds": seconds}
    return {"arm": arm, "seed": seed, "top1": quality["top1"], "steps": step, **about}


class OncePerPass:
    """Their sampler as torch's loader takes it today. Theirs begins a new pass whenever `iter` is called on it, and torch's
    BatchSampler (2.15) calls that for every place of a batch, so that theirs would count itself to its end and prune nothing."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        iter(self.sampler)
        yield from self.sampler.sample_indices

    def __len__(self) -> int:
        return len(self.sampler)


def counted_passes(steps: int, size: int, rate: float) -> int:
    """About how many passes so many steps are, if a little more than half of the losses are below their mean. A multiple of
    8: where 0.875 of the passes are no whole number, theirs never sets the weights back to 1."""
    pruned, whole = (size * (1 - 0.55 * rate) // BATCH, size // BATCH)
    return 8 * round(steps / (0.875 * pruned + 0.125 * whole) / 8)


def images_of(data: Any, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All training images, uint8 [N, H, W, 3], and their targets."""
    pixels, labels = [], []
    for shard in list_shards(data):
        for batch in decoded_batches(read_shard(data, shard), model.geometry, 500):
            pixels.append(batch.pixels)
            labels += [example.target for example in batch.examples]
    return torch.from_numpy(np.concatenate(pixels)), model.targets(labels)


def planned() -> list[tuple[str, int]]:
    """(arm, seed) of all runs, in their order."""
    return [(arm, seed) for seed in range(SEEDS) for arm in ARMS]


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    return (of_ours if arm in (UNIFORM, OURS) else of_theirs)(folder, arm, seed)


def key_of(line: dict[str, Any]) -> tuple[str, int]:
    return line["arm"], line["seed"]


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 of each arm, what it is beside uniform, and the share that theirs pruned."""
    lines = ["| arm | top-1 | minus ours, uniform | updates | pruned |", "|---" * 5 + "|"]
    of = {arm: [line for line in results if line["arm"] == arm] for arm in ARMS}
    for arm, found in of.items():
        if not found:
            continue
        more = "" if arm == UNIFORM else difference(by_seed(found), by_seed(of[UNIFORM]))
        shares = [line["pruned"] for line in found if "pruned" in line]
        pruned = f"{sum(shares) / len(shares):.0%}" if shares else ""
        lines.append(f"| {arm} | {cell([*by_seed(found).values()])} | {more} | {found[0]['steps']} | {pruned} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run, public=".")
