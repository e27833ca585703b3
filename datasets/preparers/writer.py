"""Shards, splits and analysis files: the same input gives the same bytes on every machine."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from webdataset.writer import TarWriter

from ...progress import Progress
from ...units import Report


class Count(TypedDict):
    """What prepared.json says of one split."""

    examples: int
    shards: int


def write_shards(
    folder: Path,
    examples: Iterable[Mapping[str, Any]],
    *,
    per_shard: int = 1000,
    report: Report | None = None,
) -> tuple[Count, list[tuple[str, str]]]:
    """Write `folder`/00000.tar, 00001.tar... and return the count with every example's (shard, key), in order.

    An example is a mapping of `__key__` and, by extension, bytes. Every header field is fixed (time, owner, mode).
    """
    folder.mkdir(parents=True, exist_ok=True)
    placed: list[tuple[str, str]] = []
    file, tar = None, None
    progress = Progress(report or (lambda line: None), folder.name, 0)
    try:
        for example in examples:
            if len(placed) % per_shard == 0:
                if tar is not None and file is not None:
                    tar.close()
                    file.close()
                file = open(folder / f"{len(placed) // per_shard:05d}.tar", "wb")  # noqa: SIM115
                tar = TarWriter(file, user="curate", group="curate", mtime=0.0)
            assert tar is not None and "." not in example["__key__"]
            tar.write(dict(example))
            placed.append((f"{len(placed) // per_shard:05d}", example["__key__"]))
            progress.update(len(placed), lambda: f"{len(placed):,} examples written")
    finally:
        progress.close()
        if tar is not None and file is not None:
            tar.close()
            file.close()
    return {"examples": len(placed), "shards": -(-len(placed) // per_shard)}, placed


def shard_pattern(folder: str, count: Count) -> str:
    """The brace pattern of `count["shards"]` shards in `folder`."""
    last = count["shards"] - 1
    return f"{folder}/{{00000..{last:05d}}}.tar" if last else f"{folder}/00000.tar"


def write_analysis(path: Path, placed: Sequence[tuple[str, str]], columns: Mapping[str, Sequence[Any] | Any]) -> None:
    """Write what only reports may read about the examples: Parquet with shard, key and `columns`, one row for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shards, keys = [shard for shard, _ in placed], [key for _, key in placed]
    table = {"shard": pa.array(shards, pa.string()), "key": pa.array(keys, pa.string())}
    pq.write_table(pa.table(table | {name: pa.array(values) for name, values in columns.items()}), path)


def seeded_order(items: Iterable[Hashable], seed: str) -> list[Any]:
    """`items` in the order of the sha256 of seed and item, which does not depend on a library's version."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{item}".encode()).digest())


def stratified_split(labels: Sequence[int], sizes: Sequence[int], seed: str) -> list[list[int]]:
    """Split positions 0..n-1 into parts of `sizes` (their sum is n) so that each has the classes' shares, shuffled.

    Within a class the order is `seeded_order`. Every part's share of a class is off by less than one example for each
    part.
    """
    assert sum(sizes) == len(labels)
    by_class: dict[int, list[int]] = {}
    for position in seeded_order(range(len(labels)), seed):
        by_class.setdefault(int(labels[position]), []).append(position)
    # An example at quantile q of its class gets position q of the whole, so cutting the whole cuts every class alike.
    dealt = [
        ((rank + 0.5) / len(members), label, position)
        for label, members in sorted(by_class.items())
        for rank, position in enumerate(members)
    ]
    line = [position for _, _, position in sorted(dealt)]
    parts, start = [], 0
    for size in sizes:
        parts.append(seeded_order(line[start : start + size], seed + ":order"))
        start += size
    return parts


def encode_png(pixels: np.ndarray[Any, Any] | Image.Image) -> bytes:
    """PNG bytes of an image, or of a uint8 array (height, width) or (height, width, 3); fast to write, not small."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
