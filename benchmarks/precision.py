"""What bf16 changes in stored losses, on real data with trained references. About 4 minutes on 2 cores.

A small ResNet of CIFAR-10N's curated half scores CIFAR-10N's 40,000 pictures, a small CLIP of emoji scores the emoji's
own training pairs, each in fp32 and in bf16. Compared row by row: the losses, and which fifth of the rows has the least
loss, which is what a filter ratio of 0.8 by the reference alone would keep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from curate.datasets.preparers import prepare
from curate.datasets.spec import add_model
from curate.scoring import open_scores
from curate.units import Report
from data import cifar10n
from measuring import Benchmark, Figure, curate

KEPT = 0.2
VISION = {"image_size": 32, "timm_model_name": "small_resnet_w8", "timm_pool": "avg", "timm_proj": ""}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"architecture": "small_resnet", "arguments": {"channels": [16, 32, 64], "layers": [1, 1]}},
    "reference": {"config": {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": TEXT}},
}
CASES = {
    "cross-entropy": ("cifar10n-curated", "cifar10n", "resnet", 300),
    "negative dot product": ("emoji", "emoji", "reference", 300),
}


def measure(work: Path, report: Report) -> list[Figure]:
    toml = work / "curate.toml"
    cifar10n(work, report)
    prepare("emoji", work / "data", toml, report=lambda line: None)
    for name, entry in MODELS.items():
        add_model(toml, name, entry)
    figures = []
    for loss, (curated, dataset, model, steps) in CASES.items():
        report(f"  {loss}: training, scoring twice")
        common = ("--steps", steps, "--batch-size", 128, "--lr", 2e-3, "--name", model)
        curate("train", "--dataset", curated, "--learner", model, *common, cwd=work)
        losses = {precision: score(work, dataset, f"runs/{model}", precision) for precision in ("fp32", "bf16")}
        figures += compare(loss, losses["fp32"], losses["bf16"])
    return figures


def score(work: Path, dataset: str, reference: str, precision: str) -> np.ndarray:
    arguments = ("--dataset", dataset, "--reference", reference, "--precision", precision, "--out", precision)
    curate("score-reference", *arguments, cwd=work)
    losses: np.ndarray = open_scores(str(work / precision / f"dataset={dataset}")).read(["loss"])["loss"].to_numpy()
    return losses


def compare(loss: str, fp32: np.ndarray, bf16: np.ndarray) -> list[Figure]:
    difference, count = np.abs(bf16 - fp32), round(KEPT * len(fp32))
    kept = [set(np.argsort(losses, kind="stable")[:count].tolist()) for losses in (fp32, bf16)]
    ranks = [np.argsort(np.argsort(losses, kind="stable")) for losses in (fp32, bf16)]
    named = {
        "standard deviation of the loss": (float(fp32.std()), ""),
        "difference, mean": (float(difference.mean()), ""),
        "difference, 99 % within": (float(np.quantile(difference, 0.99)), ""),
        "difference, most": (float(difference.max()), ""),
        "rank correlation": (float(np.corrcoef(ranks[0], ranks[1])[0, 1]), ""),
        "the same rows in the fifth of least loss": (100 * len(kept[0] & kept[1]) / count, "%"),
    }
    return [Figure(name=f"{loss}: {name}", samples=(value,), unit=unit) for name, (value, unit) in named.items()]


BENCHMARK = Benchmark(
    "precision",
    "how far bf16's losses lie from fp32's (no goal)",
    measure,
    {"cross-entropy": "CIFAR-10N, 40,000 pictures", "negative dot product": "emoji, training pairs"},
)
