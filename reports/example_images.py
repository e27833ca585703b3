"""The images of some examples, small and inlined, with their classes or captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ..datasets.decoding import Geometry, decode
from ..datasets.readers import Example, read_shard
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import DatasetSpec
from ..errors import CurateError, ExampleError

Name = tuple[str, str]
"""(shard, key) of an example."""


@dataclass(frozen=True)
class Shown:
    """An example on a page: its image as a data: URI (empty if it cannot be decoded), and its class or caption."""

    image: str
    caption: str


def shown_images(
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
    for name, key in wanted:
        left.setdefault(name, set()).add(key)
    images: dict[Name, Shown] = {}
    with suppress(CurateError, OSError):
        for shard in list_shards(dataset) if wanted else ():
            keys = left.get(shard.name)
            if keys:
                with suppress(CurateError, OSError):  # the images of other shards can still be read
                    for example in _wanted_of(dataset, shard, keys):
                        images[shard.name, example.key] = _shown(dataset, example, size, kind, longest_caption)
    return images


def _wanted_of(dataset: DatasetSpec, shard: Shard, keys: set[str]) -> Iterator[Example]:
    """The usable examples of these keys, in the shard's order. Raises as `read_shard` does."""
    left = set(keys)
    for example in read_shard(dataset, shard):
        if example.key in left:
            left.discard(example.key)
            if isinstance(example, Example):
                yield example
        if not left:
            return


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
