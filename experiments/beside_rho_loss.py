"""RHO-LOSS's public code beside `--policy rho`: the same data, learner, score table, rate, FLOPs and seeds.

    git clone https://github.com/OATML/RHO-Loss
    python experiments/beside_rho_loss.py FOLDER RESULTS.jsonl --public RHO-Loss    # half a minute a run on one AVX2 core
    python experiments/beside_rho_loss.py --table RESULTS.jsonl

Data, models and reference (trained on 1,000 clean examples) are those of `curated_map.py`, whose FOLDER it may share. A tenth
of every super-batch is chosen, 32 of 320 at a rate of 1e-3, as in their configuration of CIFAR-10. Their
`reducible_loss_selection` is used as it is; optimizer, augmentation, schedule and test are those of this package. The module
that has it imports wandb and torchmetrics and uses neither: where they are not installed, empty modules take their place.

Their training loop scores in training mode, on the augmented images that it then trains on; `--policy rho` scores in evaluation
mode, on images as they are. The arms take these two steps apart. With neither of them theirs must choose as ours does. In
training mode the scoring pass also moves the running statistics, by which the learner is tested: one arm leaves them alone.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from crossing import by_seed
from curate.datasets.spec import find_dataset, load_config
from curate.scoring import Selector
from curate.scoring.gradients import still_statistics
from curate.scoring.loading import find_model, load_model
from curate.scoring.losses import cross_entropy
from curate.training.augment import augment
from curate.training.evaluate import evaluate
from curate.training.schedule import learning_rate
from curate.training.startup import stream_seed
from curate.training.superbatch import SuperBatches
from curate.training.trainee import Trainee
from curated_map import learn, score_table
from planned_runs import run_planned
from seeds import cell, difference

SEEDS, CURATED, BATCH, SUPER, LR, WARMUP = 3, 1000, 32, 320, 1e-3, 0.05
CPU = torch.device("cpu")
CHECK, CASES = "arithmetic", 1000
# Ours is asked beside theirs at each so many steps.
LOOK_EVERY = 10
UNIFORM, SHORT, OURS = "uniform, equal FLOPs", "uniform, as many updates", "ours, rho"


@dataclass(frozen=True)
class Theirs:
    """How their code is let score: with the learner in training mode, which moves the running statistics of its BatchNorm
    layers too, and on the augmented images that it trains on."""

    training_mode: bool = True
    moves_statistics: bool = True
    augmented: bool = False


THEIRS = {
    "theirs, scored as ours": Theirs(training_mode=False),
    "theirs, in training mode": Theirs(),
    "theirs, in training mode, augmented": Theirs(augmented=True),
    "theirs, in training mode, statistics left alone": Theirs(moves_statistics=False),
}
ARMS = (UNIFORM, SHORT, OURS, *THEIRS)


@cache
def their_selection() -> Any:
    """Their selection method. The clone must be on sys.path."""
    for name in ("wandb", "torchmetrics"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
    from src.curricula.selection_methods import reducible_loss_selection  # type: ignore[import-not-found]

    return reducible_loss_selection()


def their_choice(model: Any, inputs: torch.Tensor, targets: torch.Tensor, irreducible: torch.Tensor) -> torch.Tensor:
    """What their code chooses of a super-batch, in ascending order. `model` gives the logits of `inputs`."""
    chosen, _, _ = their_selection()(
        selected_batch_size=BATCH,
        data=inputs,
        target=targets,
        global_index=torch.arange(len(targets)),
        large_model=model,
        irreducible_loss_generator=irreducible,
    )
    found: torch.Tensor = chosen.sort().values
    return found


def our_choice(logits: torch.Tensor, targets: torch.Tensor, irreducible: torch.Tensor) -> torch.Tensor:
    selector = Selector("rho", BATCH, sampler="topk")
    return selector(online_loss=cross_entropy(logits, targets), reference_loss=irreducible).index


def check() -> dict[str, Any]:
    """Given the same logits, labels and reference losses: how often do both choose the same?"""
    random, started, same = torch.Generator().manual_seed(0), time.perf_counter(), 0
    for _ in range(CASES):
        logits = 3 * torch.randn(SUPER, 10, generator=random)
        targets = torch.randint(10, (SUPER,), generator=random)
        irreducible = torch.rand(SUPER, generator=random) * 5
        theirs = their_choice(lambda inputs, logits=logits: logits, logits, targets, irreducible)
        same += torch.equal(theirs, our_choice(logits, targets, irreducible))
    return {"arm": CHECK, "seed": 0, "cases": CASES, "same": same, "seconds": time.perf_counter() - started}


def of_ours(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """A run of this package, by its own commands' code."""
    changes: dict[str, Any] = {"batch_size": BATCH}
    if arm != UNIFORM:
        scores = score_table(folder, CURATED, "bulk")
        changes |= {"policy": "rho", "sampler": "topk", "filter_ratio": 1 - BATCH / SUPER, "reference_scores": scores}
    if arm == SHORT:
        steps = of_ours(folder, OURS, seed)["steps"]
        changes = {"batch_size": BATCH, "budget_flops": None, "steps": steps}
    name = f"{arm.replace(',', '').replace(' ', '-')}-seed{seed}"
    summary = learn(folder, "rho", name, seed, LR, **changes)
    return line_of(arm, seed, summary["quality"]["top1"], summary["steps"], summary["took"]) | {
        "flops": summary["regimes"]["foundation"]
    }


def of_theirs(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train on what their code chooses for as many updates as ours, in a loop with the same random numbers."""
    how, ours = THEIRS[arm], of_ours(folder, OURS, seed)
    steps = ours["steps"]
    config = load_config(folder / "curate.toml")
    data = find_dataset("bulk", config)
    model = load_model(find_model("learner", task=data.task, num_classes=10, config=config), seed=seed)
    trainee = Trainee(model, lr=LR, device=CPU)
    scores = score_table(folder, CURATED, "bulk")
    batches = SuperBatches(data, SUPER, views={"learner": model.geometry}, scores=scores, seed=seed, config=config)
    random = torch.Generator().manual_seed(stream_seed(seed, "augment"))
    started, same = time.perf_counter(), list[float]()
    for step, batch in zip(range(steps), batches, strict=False):
        pixels, targets, irreducible = batch.views["learner"], batch.model_targets("learner"), batch.reference_loss
        assert irreducible is not None
        if step % LOOK_EVERY == 0:
            with torch.no_grad():
                as_ours = our_choice(model.module.eval()(model.normalize(pixels)), targets, irreducible)
        pixels = augment(pixels, "crop-flip", random) if how.augmented else pixels
        with nullcontext() if how.moves_statistics else still_statistics(model.module):
            chosen = their_choice(model.module.train(how.training_mode), model.normalize(pixels), targets, irreducible)
        if step % LOOK_EVERY == 0:
            same.append(torch.isin(chosen, as_ours).float().mean().item())
        pixels = pixels[chosen] if how.augmented else augment(pixels[chosen], "crop-flip", random)
        trainee.step(pixels, targets[chosen], learning_rate(step, steps, 1.0, round(WARMUP * steps)))
    seconds = time.perf_counter() - started
    batches.close()
    top1 = evaluate(model, data, device=CPU, precision="fp32")["top1"]
    return line_of(arm, seed, top1, steps, seconds) | {"flops": ours["flops"], "same": statistics.fmean(same)}


def line_of(arm: str, seed: int, top1: float, steps: int, seconds: float) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "top1": top1, "steps": steps, "seconds": seconds}


def planned() -> list[tuple[str, int]]:
    """(arm, seed) of all lines, in their order."""
    return [(CHECK, 0), *((arm, seed) for seed in range(SEEDS) for arm in ARMS)]


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    return check() if arm == CHECK else (of_theirs if arm in THEIRS else of_ours)(folder, arm, seed)


def key_of(line: dict[str, Any]) -> tuple[str, int]:
    return line["arm"], line["seed"]


def tables(results: list[dict[str, Any]]) -> str:
    """The check, then top-1 of each arm, what it is beside ours, and the share of the choice that ours would have chosen too."""
    lines = [
        f"Given the same losses: the same choice in {line['same']:,} of {line['cases']:,} cases.\n"
        for line in results
        if line["arm"] == CHECK
    ]
    lines += ["| arm | top-1 | minus ours, rho | updates | FLOPs | as ours would choose |", "|---" * 6 + "|"]
    of = {arm: [line for line in results if line["arm"] == arm] for arm in ARMS}
    for arm, found in of.items():
        if not found:
            continue
        more = "" if arm == OURS else difference(by_seed(found), by_seed(of[OURS]))
        shares = [line["same"] for line in found if "same" in line]
        same = f"{sum(shares) / len(shares):.1%}" if shares else ""
        top1, flops = cell([*by_seed(found).values()]), f"{found[0]['flops'] / 1e12:.2f} TF"
        lines.append(f"| {arm} | {top1} | {more} | {found[0]['steps']} | {flops} | {same} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run, public=".")
