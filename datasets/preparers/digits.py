"""Digits: scikit-learn's 1,797 handwritten digits, 8x8 pixels, from inside its wheel. Ready in a second.

`digits` (train 900, the bulk) and `digits-curated` (train 300, for references) share a test split of 597.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...units import Report
from ..targets import LABEL
from .writer import Count, encode_png, shard_pattern, stratified_split, write_shards

VERSION = 1
SEED = "curate-digits"
SIZES = {"train": 900, "curated": 300, "test": 597}
PER_SHARD = {"train": 150, "curated": 150, "test": 200}
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def build(folder: Path, report: Report) -> dict[str, Any]:
    """Write the three splits' shards into `folder`; returns what prepared.json keeps."""
    import sklearn
    from sklearn.datasets import load_digits

    digits = load_digits()
    parts = stratified_split(digits.target.tolist(), list(SIZES.values()), SEED)
    # Pixels are 0..16 in the source. They are scaled to the full range, for the usual normalisation of 8-bit images.
    pictures = np.rint(digits.images * 255 / 16).astype(np.uint8)

    def examples(positions: list[int]) -> Iterator[dict[str, Any]]:
        for position in positions:
            picture = np.repeat(pictures[position][:, :, None], 3, axis=2)
            label = str(int(digits.target[position])).encode()
            yield {"__key__": f"digit-{position:04d}", "png": encode_png(picture), "cls": label}

    counts = {
        split: write_shards(folder / split, examples(positions), per_shard=PER_SHARD[split])[0]
        for split, positions in zip(SIZES, parts, strict=True)
    }
    package = {"registry": "pypi", "name": "scikit-learn", "version": sklearn.__version__, "sha256": ""}
    return {"packages": [package], "counts": counts}


def entries(root: str, counts: Mapping[str, Count]) -> dict[str, dict[str, Any]]:
    """The tables of curate.toml, by data set; `root` is the prepared folder as that file names it."""
    common = {
        "test": shard_pattern(f"{root}/test", counts["test"]),
        "task": LABEL.task,
        "image": "png",
        "label": "cls",
        "classes": list(CLASSES),
    }
    return {
        name: {"train": shard_pattern(f"{root}/{split}", counts[split]), **common, "description": description}
        for name, split, description in (
            ("digits", "train", "scikit-learn's handwritten digits, 8x8"),
            ("digits-curated", "curated", "300 handwritten digits for a reference"),
        )
    }
