"""DRRho-CLIP's public code beside ours, on image-text pairs: the same data, learner, reference, rate and seeds.

    git clone https://github.com/Optimization-AI/DRRho-CLIP
    python experiments/beside_drrho_clip.py FOLDER RESULTS.jsonl --public DRRho-CLIP    # a minute a run on one AVX2 core
    python experiments/beside_drrho_clip.py --table RESULTS.jsonl

Data, models and reference are those of `pairs.py`, whose FOLDER it may share: icons, chosen for emoji. The learner is as large as
the reference, so that a run is short. Two parts of theirs are used as they are. `SogCLRLoss` is their training loss: it drops
nothing, and weighs the pairs of each anchor by how far the learner's similarity is above the reference's. Its settings are those
of their published command, at two temperatures. `jointly_sample_batch_softmax` is their sampler, JEST's, which drops: it takes
the place of `--policy jest`, with the same online model. Both run on a CPU. The sampler gathers from a process group, so one of
a single process is begun. Data path, optimizer, schedule and test are those of this package.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from curate.datasets.spec import find_dataset, load_config
from curate.scoring.forward import embed, embeddings_of, score_batch
from curate.scoring.joint import select_jointly
from curate.scoring.loading import find_model, load_model
from curate.scoring.losses import Pairs
from curate.scoring.models import Model, Scored
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tasks.image_text import ImageText
from curate.training import RunOptions, train
from curate.training.batch import SuperBatch
from curate.training.evaluate import evaluate
from curate.training.schedule import learning_rate
from curate.training.startup import stream_seed
from curate.training.superbatch import SuperBatches
from curate.training.trainee import Trainee
from curated_map import quiet
from drrho_code import CHUNKS, check, process_group, their_loss, their_sample
from map_settings import NEVER
from pairs import DATASET, FILTER_RATIO, ONLINE_LR, QUALITY, score_table, set_up
from planned_runs import run_planned
from seeds import cell, difference
from sources import IN_THIS_PROCESS, pairs_of

BUDGET, LR, SEEDS, BATCH, WARMUP = 0.5e12, 1e-3, 3, 128, 0.05
# The learner is a model of `pairs.py` that is as large as the reference, a third of the learner there.
LEARNER = "reference"
SUPER = round(BATCH / (1 - FILTER_RATIO))
CPU = torch.device("cpu")
CHECK, DRAWS = "arithmetic", 200
UNIFORM, JEST = "ours, uniform", "ours, jest, 2 chunks"
ONLINE = {"online": "online", "online_lr": ONLINE_LR, "filter_ratio": FILTER_RATIO}
OURS: dict[str, dict[str, Any]] = {
    UNIFORM: {},
    "ours, learnability": {"policy": "learnability", **ONLINE},
    JEST: {"policy": "jest", "chunks": CHUNKS, **ONLINE},
}


@dataclass(frozen=True)
class Weighing:
    """Their loss at a temperature, with the reference's similarities taken off or without."""

    temperature: float
    reference: bool = True


SAMPLER = "theirs, sampler"
LOSSES = {
    "theirs, loss, T = 0.01 as published": Weighing(0.01),
    "theirs, loss, T = 0.07": Weighing(0.07),
    "theirs, loss without the reference, T = 0.07": Weighing(0.07, reference=False),
}
ARMS = (UNIFORM, *LOSSES, JEST, SAMPLER, "ours, learnability")


# Runs.


def of_ours(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """A run of this package, by its own commands' code."""
    changes = {**OURS[arm]}
    if changes:
        changes["reference_scores"] = scores_of(folder)
    name = f"{arm.replace(',', '').replace(' ', '-')}-seed{seed}"
    options = RunOptions.of(
        **{"dataset": DATASET, "learner": LEARNER, "budget_flops": BUDGET, **changes},
        seed=seed,
        lr=LR,
        precision="fp32",
        selections_every=NEVER,
        checkpoint_every=NEVER,
        log_every=NEVER,
        out=str(folder / "drrho"),
        name=name,
    )
    config = load_config(folder / "curate.toml")
    summary = train(options, config=config, resume=True, report=quiet)
    model = load_model(find_model(str(folder / "drrho" / name), task=ImageText.name, config=config), trained=True)
    return {
        "arm": arm,
        "seed": seed,
        "rank": rank_on_test(folder, model),
        "recall": summary["quality"][QUALITY],
        "steps": summary["steps"],
        "flops": summary["regimes"]["foundation"],
        "seconds": summary["seconds"]["total"] - summary["seconds"]["evaluate"],
    }


def of_theirs(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train by their sampler for as many updates as jest, or by their loss for as many as uniform."""
    ours = of_ours(folder, JEST if arm == SAMPLER else UNIFORM, seed)
    steps, config = ours["steps"], load_config(folder / "curate.toml")
    data = find_dataset(DATASET, config)
    model, online = (
        load_model(find_model(name, task=data.task, config=config), seed=own)
        for name, own in ((LEARNER, seed), ("online", stream_seed(seed, "online")))
    )
    if arm in LOSSES:
        scale: Any = model.module.logit_scale
        scale.data.fill_(-math.log(LOSSES[arm].temperature))
        scale.requires_grad_(False)
    learner, small = (
        Trainee(one, lr=lr, device=CPU, precision="fp32") for one, lr in ((model, LR), (online, ONLINE_LR))
    )
    seen = {"learner": model, **({"online": online} if arm == SAMPLER else {})}
    batches = SuperBatches(
        data,
        SUPER if arm == SAMPLER else BATCH,
        views={name: one.geometry for name, one in seen.items()},
        tokenize={name: one.tokenizer for name, one in seen.items() if one.tokenizer},
        scores=scores_of(folder),
        embeddings=True,
        seed=seed,
        config=config,
    )
    torch.manual_seed(stream_seed(seed, "select"))
    started, more = time.perf_counter(), {}
    for step, batch in zip(range(steps), batches, strict=False):
        share = learning_rate(step, steps, 1.0, round(WARMUP * steps))
        if arm == SAMPLER:
            known = both_pairs(folder, online, batch)
            if step == steps // 2:
                more = alike(*known)
            with process_group():
                batch = batch.take(their_sample(*known, BATCH))
            small.step(batch.views["online"], batch.model_targets("online"), share)
        else:
            learner.step_loss = partial(their_step_loss, LOSSES[arm], batch)
        learner.step(batch.views["learner"], batch.model_targets("learner"), share)
    seconds = time.perf_counter() - started
    batches.close()
    recall = evaluate(model, data, device=CPU, precision="fp32")[QUALITY]
    about = {"steps": steps, "flops": ours["flops"], "seconds": seconds, **more}
    return {"arm": arm, "seed": seed, "rank": rank_on_test(folder, model), "recall": recall, **about}


def their_step_loss(how: Weighing, batch: SuperBatch, output: Any, tokens: torch.Tensor) -> torch.Tensor:
    assert batch.reference_pairs is not None
    features = [embedding.float() for embedding in embeddings_of(output)]
    reference = [embedding.float() for embedding in batch.reference_pairs] if how.reference else None
    places, scale = torch.arange(len(tokens)), torch.tensor(1 / how.temperature)
    value: torch.Tensor = their_loss(len(tokens))(features, (places, places), scale, 0, ref_features=reference)[0]
    return value


def both_pairs(folder: Path, online: Model, batch: SuperBatch) -> tuple[Pairs, Pairs]:
    """A super-batch as the online model and as the reference see it."""
    scored: Scored = score_batch(
        online, batch.views["online"], batch.model_targets("online"), precision="fp32", micro_batch=256
    )
    assert scored.image_embedding is not None and scored.text_embedding is not None and batch.reference_pairs
    scale: Any = online.module.logit_scale
    of_reference = float(open_scores(scores_of(folder)).manifest["scale"])
    return (
        Pairs(scored.image_embedding, scored.text_embedding, float(scale.detach().exp())),
        Pairs(*batch.reference_pairs, of_reference),
    )


def alike(online: Pairs, reference: Pairs) -> dict[str, float]:
    """How alike both samplers draw: the correlation between how often each pair of one super-batch is drawn, and the same
    between two times ours; and how much more learnable than the super-batch what each draws is. Their random numbers are put
    back."""
    random, before = torch.Generator().manual_seed(0), torch.get_rng_state()

    def ours() -> torch.Tensor:
        return select_jointly(online, reference, BATCH, loss="softmax", n_chunks=CHUNKS, generator=random).index

    def often(draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        return torch.bincount(torch.cat([draw() for _ in range(DRAWS)]), minlength=SUPER) / DRAWS

    score = select_jointly(online, reference, BATCH, loss="softmax", n_chunks=1, generator=random).score
    assert score is not None
    with process_group():
        theirs = often(lambda: their_sample(online, reference, BATCH))
    first, again = often(ours), often(ours)
    torch.set_rng_state(before)

    def gain(share: torch.Tensor) -> float:
        return float((share * score).sum() / share.sum() - score.mean())

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    return {
        "alike": correlation(theirs, first),
        "ours_alike": correlation(first, again),
        "their_gain": gain(theirs),
        "our_gain": gain(first),
    }


@cache
def scores_of(folder: Path) -> str:
    return score_table(folder, "reference", DATASET, IN_THIS_PROCESS)


def rank_on_test(folder: Path, model: Model) -> float:
    """At which share of the test's captions an image's own one comes, and the other way: 0 is first, 0.5 is chance."""
    pairs = pairs_of(folder, "emoji", model, "test")
    with torch.no_grad():
        image_ND, text_ND = embed(model.module.eval(), model.normalize(pairs.pixels), pairs.tokens)
    z_NN = image_ND @ text_ND.T
    before = (z_NN > z_NN.diagonal()[:, None]).float().mean() + (z_NN > z_NN.diagonal()).float().mean()
    return before.item() / 2


def planned() -> list[tuple[str, int]]:
    """(arm, seed) of all lines, in their order."""
    return [(CHECK, 0), *((arm, seed) for seed in range(SEEDS) for arm in ARMS)]


def run(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    if arm == CHECK:
        return {"arm": CHECK, "seed": seed, **check()}
    return (of_ours if arm in OURS else of_theirs)(folder, arm, seed)


def key_of(line: dict[str, Any]) -> tuple[str, int]:
    return line["arm"], line["seed"]


def tables(results: list[dict[str, Any]]) -> str:
    """The check; quality of each arm, and what it is beside uniform's and beside jest's; how alike both samplers draw."""
    lines = [
        "| T | eps | batch | weights differ by | gradients differ by | an anchor's weights, in all |",
        "|---" * 6 + "|",
    ]
    for case in (case for line in results if line["arm"] == CHECK for case in line["cases"]):
        batch = "learned" if case["learned"] else "random"
        found = f"{case['weights']:.1e} | {case['gradient']:.1e} | {case['total']:.3g}"
        lines.append(f"| {case['temperature']:g} | {case['eps']:g} | {batch} | {found} |")

    def of(arm: str, what: str) -> dict[int, float]:
        return {line["seed"]: line[what] for line in results if line["arm"] == arm}

    lines += ["", "| arm | emoji: rank | minus uniform | minus jest | emoji: mean recall | updates |", "|---" * 6 + "|"]
    for arm in ARMS:
        ranks = of(arm, "rank")
        if not ranks:
            continue
        beside = ["" if other == arm else difference(ranks, of(other, "rank")) for other in (UNIFORM, JEST)]
        recall, steps = cell([*of(arm, "recall").values()]), max(of(arm, "steps").values())
        lines.append(f"| {arm} | {cell([*ranks.values()])} | {' | '.join(beside)} | {recall} | {steps} |")
    drawn = [line for line in results if "alike" in line]
    if drawn:
        names = ("alike", "ours_alike", "their_gain", "our_gain")
        both, again, theirs, ours = (statistics.fmean(line[name] for line in drawn) for name in names)
        lines += ["", "| sampler | correlation with ours | learnability above the super-batch's |", "|---" * 3 + "|"]
        lines += [f"| theirs | {both:.2f} | {theirs:.2f} |", f"| ours, once more | {again:.2f} | {ours:.2f} |"]
    return "\n".join(lines)


def first(paths: list[Path]) -> tuple[Path, Path]:
    """The folder, with the data of the pairs in it, and the file of the results."""
    folder, results = (path.resolve() for path in paths)
    set_up(folder)
    return folder, results


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run, first=first, public="src")
