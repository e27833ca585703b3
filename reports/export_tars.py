"""WebDataset shards: the chosen examples' members, byte for byte, in the source's order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ..datasets.decoding import FORMATS
from ..datasets.readers import Example, read_shard
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..datasets.tars import MAX_IMAGE_BYTES, tar_members
from ..datasets.writing import whole_file
from ..errors import ExampleError, QueryError
from .export_folders import Part
from .export_picks import check_found

ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}


def write_tar(url: str, spec: DatasetSpec, parts: Sequence[Part]) -> None:
    """One tar of the chosen examples of some shards.

    Members of tars keep their names and bytes, whatever their ending. Of a row or an image file are made an image, a
    `.cls` or `.txt` member, and a `.json` member with the shard and key that it had. All else in a header is fixed, so
    that the same examples give the same tar. Raises QueryError where two shards have the same key or a key is not found.
    """
    with whole_file(url) as partial:
        write_members(partial, _members(spec, parts))


def write_members(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of (name, content). Owner, mode and time are fixed; memory is bounded by one member."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
            cast(Any, tar).members = []  # tarfile keeps every header


def _members(spec: DatasetSpec, parts: Sequence[Part]) -> Iterator[tuple[str, bytes]]:
    homes: dict[str, str] = {}
    for shard, table in parts:
        wanted, found = set(table["key"].to_pylist()), set[str]()
        for source, key, name, content in _of_shard(spec, shard, wanted):
            found.add(source)
            if homes.setdefault(key, shard.name) != shard.name:
                raise QueryError(
                    f"key '{key}' is in the shards '{homes[key]}' and '{shard.name}', and one tar cannot hold both; "
                    "export without --shard-size"
                )
            yield name, content
        check_found(shard, wanted, found)


def _of_shard(spec: DatasetSpec, shard: Shard, wanted: set[str]) -> Iterator[tuple[str, str, str, bytes]]:
    """(key in the source, key, name, content) of every member."""
    if spec.format == "webdataset":
        for member in tar_members(shard, lambda key, _: (MAX_IMAGE_BYTES, "read") if key in wanted else None):
            if isinstance(member.content, ExampleError):
                raise QueryError(
                    f"shard '{shard.name}', key '{member.key}': {member.content}; leave it out of the query"
                )
            if member.content is not None:
                yield member.key, member.key, member.name, member.content
        return
    for example in read_shard(spec, shard):
        if isinstance(example, Example) and example.key in wanted:
            key = member_key(spec, example.key)
            for ending, content in _made_of(spec, example):
                yield example.key, key, f"{key}.{ending}", content


def _made_of(spec: DatasetSpec, example: Example) -> Iterator[tuple[str, bytes]]:
    yield image_ending(example.image), example.image
    yield spec.target.fields["webdataset"], str(example.target).encode()
    yield "json", json.dumps({"shard": example.shard, "key": example.key}, ensure_ascii=False).encode()


def member_key(spec: DatasetSpec, key: str) -> str:
    """A key that a tar can hold: webdataset ends a key at the first dot of the file's name."""
    folder, slash, name = key.rpartition("/")
    stem = name.rsplit(".", 1)[0] if spec.format == "folder" else name
    return f"{folder}{slash}{stem.replace('.', '_')}"


def image_ending(data: bytes) -> str:
    """The ending of an image's format, read from its header; jpg where Pillow does not know it."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = image.format or "JPEG"
    except Exception:  # Pillow's plugins raise anything on damaged data
        kind = "JPEG"
    return ENDINGS.get(kind, kind.lower())
