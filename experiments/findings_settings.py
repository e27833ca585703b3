"""What docs/findings.md varies: models, references, and the rows of every table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BUDGET, SEEDS, LR, SCORER_LR = 10e12, 3, 1e-3, 5e-3
REFERENCE_EXAMPLES = 300_000
DEFAULTS: dict[str, Any] = {
    "policy": "learnability",
    "learner": "learner",
    "online": "scorer48",
    "filter_ratio": 0.8,
    "lr": LR,
    "online_lr": SCORER_LR,
}


def conv(*channels: int, layers: tuple[int, ...]) -> dict[str, Any]:
    return {"architecture": "small_resnet", "arguments": {"channels": list(channels), "layers": list(layers)}}


# Named by about how many times their FLOPs the learner (the ConvNet) takes for a forward pass.
MODELS = {
    "learner": conv(32, 64, 128, 256, layers=(0, 1, 1)),
    "scorer15": conv(8, 16, 32, 64, layers=(0, 1, 1)),
    "scorer48": conv(8, 16, 32, 64, layers=(0, 0, 0)),
    "scorer200": conv(4, 8, 12, 24, layers=(0, 0, 0)),
    "scorer1000": {**conv(3, 6, 12, 24, layers=(0, 0, 0)), "preprocessing": {"size": 16}},
    # As many FLOPs as the ConvNet.
    "vit": {
        "architecture": "vit_tiny_patch16_224",
        "arguments": {"img_size": 32, "patch_size": 4, "depth": 4, "embed_dim": 128, "num_heads": 4},
    },
}


@dataclass(frozen=True)
class Reference:
    """`model` trained on `dataset`, then run over the data set that is trained on."""

    model: str = "scorer15"
    dataset: str = "cifar10n-curated"
    examples: int = REFERENCE_EXAMPLES

    @property
    def name(self) -> str:
        return f"{self.model}-on-{self.dataset}-{self.examples}"


@dataclass(frozen=True)
class Row:
    """One line of a table: what `label` changes in the run."""

    label: str
    changes: dict[str, Any] = field(default_factory=dict)
    reference: Reference | None = Reference()
    dataset: str = "cifar10n"


# Uniform's budgets, in BUDGETs, by data set and learner: (0.5, 1, 2) where nothing else is said. ViTs are slow on CPUs.
LADDERS = {("cifar10n", "learner"): (0.5, 1.0, 2.0, 4.0), ("cifar10n", "vit"): (1.0, 2.0)}

UNIFORM = Row("uniform", {"policy": "uniform"}, None)


# Uniform's best rate where "learning-rates" found another than LR.
CLEAN_LR, SMALL_LR = {"lr": 2e-3}, {"lr": 5e-4}


def noise_rows(column: str) -> list[Row]:
    dataset = "cifar10n" if column == "worse_label" else f"cifar10n-{column}"
    rate = CLEAN_LR if column == "clean_label" else {}
    return [
        Row(f"{column}, uniform", {"policy": "uniform", **rate}, None, dataset),
        Row(f"{column}, learnability", rate, Reference(), dataset),
    ]


TABLES: dict[str, list[Row]] = {
    "scorer-size": [
        UNIFORM,
        *(
            Row(f"online and reference 1/{name.removeprefix('scorer')}", {"online": name}, Reference(name))
            for name in ("scorer15", "scorer48", "scorer200", "scorer1000")
        ),
        *(
            Row(f"online 1/{name.removeprefix('scorer')}, reference 1/15", {"online": name})
            for name in ("scorer48", "scorer200", "scorer1000")
        ),
    ],
    "filter-ratio": [UNIFORM, *(Row(f"f = {f}", {"filter_ratio": f}) for f in (0.3, 0.5, 0.8, 0.9))],
    "sampling": [
        UNIFORM,
        *(Row(f"softmax, temperature {t}", {"temperature": t}) for t in (0.25, 0.5, 1.0, 2.0)),
        Row("topk", {"sampler": "topk"}),
    ],
    "reference": [
        UNIFORM,
        Row("no reference (hard-learner)", {"policy": "hard-learner"}, None),
        Row("clean, held out, 10,000", {}),
        Row("clean, held out, a third of the training", {}, Reference(examples=REFERENCE_EXAMPLES // 3)),
        Row("noisy, held out, 10,000", {}, Reference(dataset="cifar10n-curated-worse_label")),
        Row("noisy, the same 40,000", {}, Reference(dataset="cifar10n")),
        Row("clean, rho (the learner is the online model)", {"policy": "rho", "online": None}),
        Row("clean, easy-reference (no online model)", {"policy": "easy-reference", "online": None}),
    ],
    "noise": [
        row for column in ("clean_label", "aggre_label", "random_label1", "worse_label") for row in noise_rows(column)
    ],
    "learner": [
        Row("ViT, uniform", {"policy": "uniform", "learner": "vit"}, None),
        Row("ViT, learnability", {"learner": "vit"}),
        Row("ConvNet, uniform", {"policy": "uniform"}, None),
        Row("ConvNet, learnability", {}),
    ],
    "learning-rates": [
        Row(f"{label}, lr {lr:g}", {"policy": "uniform", "lr": lr, **changes}, None, dataset)
        for label, changes, dataset in (
            ("ViT", {"learner": "vit"}, "cifar10n"),
            ("clean labels", {}, "cifar10n-clean_label"),
            ("5,000 examples", {}, "cifar10n-5-shards"),
        )
        for lr in (5e-4, 1e-3, 2e-3)
    ],
    "data-size": [
        Row("5,000 examples, uniform", {"policy": "uniform", **SMALL_LR}, None, "cifar10n-5-shards"),
        Row("5,000 examples, learnability", SMALL_LR, Reference(), "cifar10n-5-shards"),
        Row("40,000 examples, uniform", {"policy": "uniform"}, None),
        Row("40,000 examples, learnability", {}),
    ],
}
