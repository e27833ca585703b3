"""Reading a shard: a stream of examples and of the bad ones among them, in the shard's order."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ExampleError, ShardError, printable
from .columns import key_text
from .fields import Captions, json_field, lines, split_field
from .patterns import expand_braces
from .shards import Shard, columns_of, is_held_out
from .spec import IN_LINES, DatasetSpec
from .storage import filesystem, read_bytes
from .targets import hash_target
from .tars import MAX_IMAGE_BYTES, Record, open_shard, read_tar

# With fewer examples than this, a job cannot judge the whole data set: one shard may hold all the bad ones.
MIN_JUDGED = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """One undecoded example. `target` is the class index or the caption; `target_hash` is of its stored bytes.

    `place` is where its image lies in the shard's file: (first byte, bytes) in a tar, (row group, row in it) in a Parquet
    file; None in a compressed tar and in a folder. `more_captions` are those after the first, which only evaluation reads.
    """

    shard: str
    row: int
    key: str
    image: bytes
    target: int | str
    target_hash: int
    place: tuple[int, int] | None = None
    more_captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """One bad example: where it failed (`read`, `decode`, `target`, `loss`) and why."""

    shard: str
    row: int
    key: str
    stage: str
    reason: str


def too_many_failures(failures: int, read: int, allowed: float, at_least: int = MIN_JUDGED) -> bool:
    """Whether a running job should end: more than the allowed share failed, of enough examples to judge by."""
    return read >= at_least and failures > allowed * read


def read_shard(spec: DatasetSpec, shard: Shard) -> Iterator[Example | Failure]:
    """Stream one shard. Rows count every example, bad ones too.

    Raises ShardError for a fault of the whole shard: a missing, cut or unreadable file, a repeated key, a missing column.
    Raises StorageError where the storage fails. The examples that were yielded before are valid, but the caller must not
    commit the shard.
    """
    if spec.format == "webdataset":
        records = read_tar(spec, shard)
    elif spec.format == "parquet":
        records = _read_parquet(spec, shard)
    else:
        records = _read_folder(spec, shard)
    if spec.hold_out:
        records = (r for r in records if is_held_out(shard.name, r[0], spec.hold_out) == shard.held_out)
    seen: set[str] = set()
    is_folder = spec.format == "folder"
    in_lines = spec.captions == IN_LINES and not spec.target.has_classes
    for row, (key, image, stored, meanings, place) in enumerate(records):
        if key in seen:
            raise ShardError(f"{shard.url}: key '{key}' occurs twice; an example's identity is (shard, key)")
        seen.add(key)
        try:
            if isinstance(image, ExampleError):
                raise image
            if not image:
                raise ExampleError("read", f"no image ({', '.join(spec.image)})" if image is None else "image is empty")
            if isinstance(stored, ExampleError):
                raise stored
            if in_lines and stored and not isinstance(stored, Captions):
                stored = lines(stored)
            target = spec.target.parse(
                stored, spec.target_field, spec.class_names, is_folder=is_folder, meanings=meanings
            )
            more = stored.more if isinstance(stored, Captions) else ()
            yield Example(shard.name, row, key, image, target, hash_target(stored or b""), place, more)
        except ExampleError as e:
            yield Failure(shard.name, row, key, e.stage, e.reason)


def _read_parquet(spec: DatasetSpec, shard: Shard) -> Iterator[Record]:
    try:
        with open_shard(shard) as file:
            parquet = pq.ParquetFile(file)
            columns = columns_of(spec, parquet, shard.url)
            first, last = shard.row_groups or (0, parquet.num_row_groups)
            row = sum(parquet.metadata.row_group(g).num_rows for g in range(first))
            groups = list(range(first, last))
            places = ((g, i) for g in groups for i in range(parquet.metadata.row_group(g).num_rows))
            for batch in parquet.iter_batches(batch_size=256, row_groups=groups, columns=columns.names):
                images = batch.column(columns.image).to_pylist()
                targets = batch.column(columns.target).to_pylist() if columns.target else images
                keys = batch.column(columns.key).to_pylist() if columns.key else None
                for i, (image, target) in enumerate(zip(images, targets, strict=True)):
                    key = key_text(keys[i], shard.url, spec.key, row + i) if keys else str(row + i)
                    stored = (
                        _tried(lambda value=target: columns.to_stored(value)) if columns.target else columns.constant
                    )
                    yield key, image_bytes(image), stored, columns.meanings, next(places)
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise ShardError(f"{shard.url}: not a readable Parquet file: {e}") from None


def image_bytes(value: Any) -> bytes | ExampleError | None:
    data: bytes | None = value.get("bytes") if isinstance(value, dict) else value
    if data is not None and len(data) > MAX_IMAGE_BYTES:
        return ExampleError("read", f"image has {len(data):,} bytes, at most {MAX_IMAGE_BYTES:,} are read")
    return data


def _tried(make: Any) -> bytes | ExampleError | None:
    """What `make` returns, or the ExampleError that it raises: it concerns one example alone."""
    try:
        found: bytes | None = make()
    except ExampleError as e:
        return e
    return found


GONE = ExampleError("read", "no image: the file was deleted, or is a link that leads to nothing")


def _read_folder(spec: DatasetSpec, shard: Shard) -> Iterator[Record]:
    """A class is the first folder under the root. A caption is a file next to its image, with the same stem."""
    ending, inner = split_field(spec.target_field)
    for key, url in folder_members(spec, shard):
        target: bytes | ExampleError | None
        if spec.target.in_folder_name:
            target = key.split("/", 1)[0].encode() if "/" in key else None
        else:
            target = _beside(url, ending)
            if inner and target is not None:
                target = _tried(lambda content=target: json_field(content, spec.target_field, is_label=False))
        image = _file_bytes(url)
        yield key, GONE if image is None else image, target, (), None


def folder_members(spec: DatasetSpec, shard: Shard) -> Iterator[tuple[str, str]]:
    """(key, URL) of each image of a folder's shard. A key is the path below its root."""
    roots = [
        filesystem(url)[1].rstrip("/")
        for pattern in spec.train + spec.test
        for url in expand_braces(spec.name, pattern)
    ]
    for url in shard.members:
        path = filesystem(url)[1]
        root = max((r for r in roots if path.startswith(r + "/")), key=len)
        yield printable(path[len(root) + 1 :]), url


def _beside(url: str, ending: str) -> bytes | None:
    """The content of the file next to an image with another ending; some cameras and systems write it in capitals."""
    stem = url.rsplit(".", 1)[0]
    found = _file_bytes(f"{stem}.{ending}")
    return found if found is not None else _file_bytes(f"{stem}.{ending.upper()}")


def _file_bytes(url: str) -> bytes | None:
    try:
        return read_bytes(url)
    except FileNotFoundError:
        return None


def to_bytes(table: pa.Table, **options: Any) -> bytes:
    """A whole Parquet file in memory, for one atomic write."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()
