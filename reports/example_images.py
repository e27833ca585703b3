"""The images of some examples, small and inlined, with their classes or captions."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ..datasets.decoding import Geometry, decode
from ..datasets.readers import Example, read_shard
from ..datasets.shards import list_shards
from ..datasets.spec import DatasetSpec
from ..errors import CurateError, ExampleError

Name = tuple[str, str]
"""(shard, key) of an example."""


@dataclass(frozen=True)
class Shown:
    """An example on a page: its image as a data: URI (empty if it cannot be decoded), and its class or caption."""

    image: str
    caption: str


def read_images(
    dataset: DatasetSpec,
    wanted: set[Name],
    *,
    size: int = 64,
    kind: Literal["PNG", "JPEG"] = "PNG",
    longest_caption: int = 60,
) -> dict[Name, Shown]:
    """Those of the wanted examples that can be read: squares of `size` pixels, cut from their middle.

    A shard is read up to the last wanted example. What cannot be read is left out: runs and tables may outlive their data.
    """
    left: dict[str, set[str]] = {}
    for shard, key in wanted:
        left.setdefault(shard, set()).add(key)
    images: dict[Name, Shown] = {}
    try:
        for found in list_shards(dataset) if wanted else ():
            keys = left.get(found.name, set())
            for example in read_shard(dataset, found) if keys else ():
                if example.key in keys:
                    keys.discard(example.key)
                    if isinstance(example, Example):
                        images[found.name, example.key] = _shown(dataset, example, size, kind, longest_caption)
                if not keys:
                    break
    except (CurateError, OSError):
        pass
    return images


def _shown(dataset: DatasetSpec, example: Example, size: int, kind: str, longest: int) -> Shown:
    caption = str(example.target)
    if isinstance(example.target, int) and example.target < len(dataset.classes):
        caption = dataset.classes[example.target]
    if len(caption) > longest:
        caption = caption[: longest - 3].rstrip() + "..."
    file = io.BytesIO()
    try:
        Image.fromarray(decode(example.image, Geometry(size=size))).save(file, kind, optimize=True)
    except ExampleError:
        return Shown("", caption)
    return Shown(f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode(), caption)
