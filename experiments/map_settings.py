"""What docs/findings.md's map varies: budget and rates, models, and its arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curate.scoring.settings import Precision
from findings_settings import conv

BUDGET, LR, ONLINE_LR, FILTER_RATIO, DISTILL, GCE = 0.4e12, 2e-3, 5e-3, 0.8, 0.7, 0.7
PRECISION: Precision = "fp32"  # on every machine, also on one that gains by bf16
REFERENCE_EXAMPLES, REFERENCE_LR = 64_000, 5e-3
UNIFORM_EXAMPLES = 153 * 128  # that uniform trains on within the budget
SEEDS, SIZES = 5, (1000, 0, 10_000, 250, 5000, 2500)
FIRST_SEEDS, FIRST_OTHERS = 3, SIZES[:3]
RATES = (1e-3, 4e-3, 8e-3)
RATES_AT, FIRST_TENTH, LAST_TENTH, NEVER = 1000, 0.1, 0.1, 1_000_000
BASE = "bulk, uniform"
MODELS = {
    "learner": conv(8, 16, 32, 64, layers=(0, 1, 1)),  # 6.9 MFLOPs a forward pass
    "reference": conv(4, 8, 16, 32, layers=(0, 0, 0)),  # 1/11 of it
    "online": {**conv(4, 8, 12, 24, layers=(0, 0, 0)), "preprocessing": {"size": 16}},  # 1/50 of it
}
# DRRho's weights come out of the training pass, and cost nothing. Here the learner scores before it, a forward pass more for
# a step's three, so these arms get a third more: as many updates as uniform.
DRRHO: dict[str, Any] = {"filter_ratio": 0.0, "sampler": "reweight", "budget_flops": BUDGET * 4 / 3}
CHOOSING: dict[str, Any] = {"online": "online", "online_lr": ONLINE_LR, "filter_ratio": FILTER_RATIO}


@dataclass(frozen=True)
class Arm:
    """What an arm trains on: `data` of `bulk`, `curated` and `mixed`; with the `reference` made of the curated examples (of
    the bulk itself where there are none), and the `prior` made of the bulk; what it `changes` in the run. `counted`: whether
    the number of curated examples matters; `needs_curated`: whether it needs any. `mix`: the share of them in every batch.
    `pretrained`: the share of the budget for which the learner first trains on the curated examples alone. `own_past`: the
    reference is a run of the learner itself, by uniform draws from the bulk, for that share of the budget's examples."""

    data: str
    changes: dict[str, Any]
    reference: bool = False
    counted: bool = True
    needs_curated: bool = True
    mix: float = 0.0
    prior: bool = False
    pretrained: float = 0.0
    own_past: float = 0.0


def choosing(policy: str, data: str = "bulk", *, needs_curated: bool = False, **changes: Any) -> Arm:
    return Arm(data, {"policy": policy, **changes}, reference=True, needs_curated=needs_curated)


# The main arms come first: they are run for every number of curated examples before the others are.
MAIN = {
    BASE: Arm("bulk", {}, counted=False, needs_curated=False),
    "curated only, uniform": Arm("curated", {}),
    "bulk + curated, mixed": Arm("mixed", {}),
    "bulk, learnability": choosing("learnability", **CHOOSING),
    "bulk, filter 50 %": choosing("filter", keep=0.5),
    "bulk, distilled from the reference": choosing("uniform", distill=DISTILL),
}
OTHERS = {
    "bulk, label smoothing 0.3": Arm("bulk", {"label_smoothing": 0.3}, counted=False, needs_curated=False),
    "bulk, small-loss": Arm("bulk", {"policy": "small-loss", **CHOOSING}, counted=False, needs_curated=False),
    "bulk, curated in the last tenth": Arm("bulk", {"mix_last": LAST_TENTH}, mix=1.0),
    "bulk, curated in the last tenth, where alone the rate falls": Arm(
        "bulk", {"mix_last": LAST_TENTH, "cooldown": LAST_TENTH}, mix=1.0
    ),
    "bulk, uniform, the rate falls in the last tenth alone": Arm(
        "bulk", {"cooldown": LAST_TENTH}, counted=False, needs_curated=False
    ),
    "bulk, curated in the first tenth": Arm("bulk", {}, pretrained=FIRST_TENTH),
    "bulk + curated, a quarter of all drawn": Arm("bulk", {}, mix=0.25),
    "bulk + curated, half of all drawn": Arm("bulk", {}, mix=0.5),
    "bulk + curated, learnability": choosing("learnability", "mixed", needs_curated=True, **CHOOSING),
    "bulk, filter 25 %": choosing("filter", keep=0.25),
    "bulk, CoLoR-Filter 50 %": Arm("bulk", {"policy": "color-filter", "keep": 0.5}, reference=True, prior=True),
    "bulk, re-weighted by learnability": choosing(
        "learnability", **{**CHOOSING, "filter_ratio": 0.0, "sampler": "reweight"}
    ),
    "bulk, learnability by the learner's own half run": Arm(
        "bulk", {"policy": "learnability", **CHOOSING}, counted=False, needs_curated=False, own_past=0.5
    ),
    "bulk, auto": choosing("auto", **CHOOSING),
    # As its paper chooses: the tenth with the highest scores, by the learner's own loss.
    "bulk, RHO-LOSS": choosing("rho", filter_ratio=0.9, sampler="topk"),
    "bulk, generalised cross-entropy": Arm("bulk", {"gce": GCE}, counted=False, needs_curated=False),
    "bulk, InfoBatch": Arm("bulk", {"policy": "infobatch", "filter_ratio": 0.3}, counted=False, needs_curated=False),
    **{f"bulk, DRRho weights, temperature {t}": choosing("rho", temperature=float(t), **DRRHO) for t in (1, 4)},
}
ARMS = {**MAIN, **OTHERS}
