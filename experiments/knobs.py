"""What matters beside the policy? One setting at a time changed, for uniform and for learnability, on CIFAR-10N.

    python experiments/knobs.py FOLDER RESULTS.jsonl     # half a minute a run on one core
    python experiments/knobs.py --table RESULTS.jsonl    # its table in docs/findings-tables.md

The data, models, reference (1,000 curated examples), budget and rates are those of `curated_map.py`, whose FOLDER it may share.
Settings of the choice alone leave uniform as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curate.datasets.spec import add_model
from curate.scoring.architectures import small_resnet
from curated_map import learn, score_table
from map_settings import CHOOSING, LR, MODELS, RATES_AT
from planned_runs import run_planned
from seeds import cell, difference
from timm.models import register_model
from torch import nn

SEEDS, BASE, BY_BATCH = 5, "as in the map", "online-by-batch"
UNIFORM, LEARNABILITY = "uniform", "learnability"
# What a setting changes in both arms, and in learnability alone.
BOTH: dict[str, dict[str, Any]] = {
    BASE: {},
    "batch 64": {"batch_size": 64},
    "batch 256": {"batch_size": 256},
    "rate 4e-3": {"lr": 2 * LR},
    "rate 1e-3": {"lr": LR / 2},
    "warm-up over 30 % of the steps": {"warmup": 0.3},
    "weight decay 0.2": {"weight_decay": 0.2},
    "the rate held, then lowered over the last fifth": {"cooldown": 0.2},
}
CHOICE: dict[str, dict[str, Any]] = {
    "filter ratio 0.5": {"filter_ratio": 0.5},
    "filter ratio 0.9": {"filter_ratio": 0.9},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 2": {"temperature": 2.0},
    "the highest scores, not drawn": {"sampler": "topk"},
    "online rate 2e-3": {"online_lr": 2e-3},
    "online model normalised by the super-batch": {"online": BY_BATCH},
}
SETTINGS = {**BOTH, **CHOICE}


@register_model  # type: ignore[untyped-decorator]
def small_resnet_by_batch(pretrained: bool = False, **kwargs: Any) -> Any:
    """A timm entry point: `small_resnet` whose BatchNorm has no running statistics, so that it normalises by the batch in
    evaluation mode too."""
    model = small_resnet(pretrained, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def add_by_batch(folder: Path) -> None:
    add_model(folder / "curate.toml", BY_BATCH, {**MODELS["online"], "architecture": "small_resnet_by_batch"})


def planned() -> list[tuple[str, str, int]]:
    return [
        (setting, policy, seed)
        for seed in range(SEEDS)
        for setting in SETTINGS
        for policy in (UNIFORM, LEARNABILITY)
        if policy == LEARNABILITY or setting in BOTH
    ]


def key_of(line: dict[str, Any]) -> tuple[str, str, int]:
    return line["setting"], line["policy"], line["seed"]


def run(folder: Path, setting: str, policy: str, seed: int) -> dict[str, Any]:
    """Train the learner under one setting."""
    changes = dict(SETTINGS[setting])
    if policy == LEARNABILITY:
        changes = {"policy": policy, **CHOOSING, "reference_scores": score_table(folder, RATES_AT, "bulk"), **changes}
    name = f"{setting.replace(',', '').replace(' %', '').replace(' ', '-')}-{policy}-seed{seed}"
    summary = learn(folder, "knobs", name, seed, **changes)
    return {
        "setting": setting,
        "policy": policy,
        "seed": seed,
        "top1": summary["quality"]["top1"],
        "steps": summary["steps"],
        "regimes": summary["regimes"],
        "seconds": summary["took"],
    }


def by_seed(results: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """Top-1 by seed, of each setting and policy."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for line in results:
        found.setdefault((line["setting"], line["policy"]), {})[line["seed"]] = line["top1"]
    return found


def tables(results: list[dict[str, Any]]) -> str:
    """Top-1 of both arms by setting, and their difference; and what a setting changes in learnability."""
    top1 = by_seed(results)
    lines = [
        "| setting | uniform | learnability | learnability minus uniform | what it changes in learnability |",
        "|---" * 5 + "|",
    ]
    for setting in (setting for setting in SETTINGS if (setting, LEARNABILITY) in top1):
        chosen, base = top1[setting, LEARNABILITY], top1[setting if setting in BOTH else BASE, UNIFORM]
        changed = "" if setting == BASE else difference(chosen, top1[BASE, LEARNABILITY])
        shares = (cell([*base.values()]) if setting in BOTH else "", cell([*chosen.values()]))
        lines.append(f"| {setting} | {' | '.join(shares)} | {difference(chosen, base)} | {changed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_planned(__doc__, tables, planned, key_of, run, add_by_batch)
