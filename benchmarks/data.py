"""The data and models that the benchmarks share: made on the spot in one temporary folder, once for a whole call."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.datasets.preparers import prepare
from curate.datasets.preparers.cifar10n import CLASSES
from curate.datasets.preparers.writer import write_shards
from curate.datasets.spec import DatasetSpec, add_dataset, add_model, find_dataset, load_config
from curate.scoring.loading import find_model, load_model, save_weights
from curate.units import Report
from PIL import Image

PICTURE_SIDE, JPEG_QUALITY = 256, 90


def cifar10n(work: Path, report: Report) -> DatasetSpec:
    """CIFAR-10N as `curate prepare` writes it: 40 shards of 1,000 PNG pictures of 32 pixels (25 s the first time)."""
    if not (work / "data" / "cifar10n").exists():
        report("  preparing CIFAR-10N")
    prepare("cifar10n", work / "data", work / "curate.toml", report=lambda line: None)
    return find_dataset("cifar10n", load_config(work / "curate.toml"))


def part_of_cifar10n(work: Path, name: str, shards: int, report: Report) -> DatasetSpec:
    """The first `shards` shards of it, as a data set of its own."""
    cifar10n(work, report)
    entry = dict(load_config(work / "curate.toml").datasets["cifar10n"])
    entry["train"] = [f"data/cifar10n/train/{i:05d}.tar" for i in range(shards)]
    add_dataset(work / "curate.toml", name, entry)
    return find_dataset(name, load_config(work / "curate.toml"))


def pictures(work: Path, report: Report, *, shards: int, per_shard: int) -> DatasetSpec:
    """CIFAR-10N's pictures enlarged to JPEGs of 256 pixels.

    They are smooth, some 8 KB each: lighter to decode than photographs of that size.
    """
    folder = work / "data" / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    spec = cifar10n(work, report)
    report(f"  enlarging {shards * per_shard:,} pictures")
    write_shards(folder, _enlarged(list(spec.train), work, shards * per_shard), per_shard=per_shard)
    entry = {"train": f"data/pictures/{{00000..{shards - 1:05d}}}.tar", "image": "jpg", "label": "cls"}
    add_dataset(work / "curate.toml", "pictures", {**entry, "classes": list(CLASSES)})
    return find_dataset("pictures", load_config(work / "curate.toml"))


def _enlarged(patterns: list[str], work: Path, count: int) -> Iterator[dict[str, Any]]:
    source = Path(patterns[0]).parent
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            contents = {name: file.read() for name, file in files.items() if file}
        for name in contents:
            if not name.endswith(".png"):
                continue
            if count == 0:
                return
            count -= 1
            side = (PICTURE_SIDE, PICTURE_SIDE)
            picture = Image.open(io.BytesIO(contents[name])).convert("RGB").resize(side, Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
            key = name.removesuffix(".png")
            yield {"__key__": key, "jpg": buffer.getvalue(), "cls": contents[f"{key}.cls"]}


def reference_with_weights(work: Path, name: str, architecture: str, **arguments: object) -> None:
    """Enter a model whose weights are random but on disk: scoring speed does not depend on what they have learnt."""
    toml = work / "curate.toml"
    entry = {"architecture": architecture, "arguments": arguments}
    add_model(toml, f"{name}-untrained", entry)
    model = load_model(
        find_model(f"{name}-untrained", task="classification", num_classes=len(CLASSES), config=load_config(toml))
    )
    save_weights(model.module, work / f"{name}.safetensors")
    add_model(toml, name, {**entry, "weights": f"{name}.safetensors"})
