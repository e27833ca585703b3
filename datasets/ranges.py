"""Images by their places: of a shard's file only the bytes, or the row groups, that hold what is asked for."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ExampleError, ReadError, ShardError, printable
from .columns import key_text
from .readers import folder_members, image_bytes
from .shards import Shard, columns_of
from .spec import DatasetSpec
from .storage import open_read, read_bytes, read_ranges

Place = tuple[int, int] | None
# Images that lie nearer than this are fetched by one request: their targets are in between.
GAP_BYTES = 1 << 16


def read_images(spec: DatasetSpec, shard: Shard, keys: Sequence[str], places: Sequence[Place]) -> list[bytes]:
    """The encoded images of some examples of a shard, in the order of `keys`; `places` are those of `Example` or of a score
    table. Nothing else of the shard is read, but for the rest of a Parquet file's row groups.

    Each is proven: by the header before it in a tar, by its key in a Parquet file. Raises ShardError where the shard is not
    the one that the places are of, or is a compressed tar, which has none; StorageError where the storage fails.
    """
    try:
        if spec.format == "webdataset":
            return _of_tar(shard, keys, places)
        if spec.format == "parquet":
            return _of_parquet(spec, shard, keys, places)
        urls = dict(folder_members(spec, shard))
        for key in keys:
            if key not in urls:
                raise _changed(shard, key)
        return [read_bytes(urls[key]) for key in keys]
    except FileNotFoundError as e:
        raise ShardError(f"{e.filename or shard.url}: no such file") from None


def _of_tar(shard: Shard, keys: Sequence[str], places: Sequence[Place]) -> list[bytes]:
    wanted: list[tuple[int, int, int]] = []
    for i, (key, place) in enumerate(zip(keys, places, strict=True)):
        if place is None:
            raise ShardError(
                f"{shard.url}: key '{key}' has no place; a compressed tar is read from its beginning alone"
            )
        first = place[0] - tarfile.BLOCKSIZE
        if first < 0:
            raise _changed(shard, key)
        wanted.append((first, tarfile.BLOCKSIZE + place[1], i))
    spans: list[tuple[int, int]] = []
    in_span: list[list[tuple[int, int, int]]] = []
    for first, size, i in sorted(wanted):
        if spans and first - sum(spans[-1]) <= GAP_BYTES:
            spans[-1] = (spans[-1][0], max(sum(spans[-1]), first + size) - spans[-1][0])
            in_span[-1].append((first, size, i))
        else:
            spans.append((first, size))
            in_span.append([(first, size, i)])
    found = [b""] * len(keys)
    for (start, _), content, members in zip(spans, read_ranges(shard.url, spans), in_span, strict=True):
        for first, size, i in members:
            part = content[first - start : first - start + size]
            found[i] = part[tarfile.BLOCKSIZE :]
            if len(part) != size or not _is_header(part[: tarfile.BLOCKSIZE], keys[i], size - tarfile.BLOCKSIZE):
                raise _changed(shard, keys[i])
    return found


def _is_header(block: bytes, key: str, size: int) -> bool:
    """Whether a block is the header of an example's file. It holds a long name, or one that is not ASCII, in part."""
    from webdataset.tariterators import base_plus_ext

    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    is_whole = key.isascii() and len(info.name) < tarfile.LENGTH_NAME
    return info.size == size and (not is_whole or base_plus_ext(printable(info.name))[0] == key)


def _of_parquet(spec: DatasetSpec, shard: Shard, keys: Sequence[str], places: Sequence[Place]) -> list[bytes]:
    by_group: dict[int, list[tuple[int, int]]] = {}
    for i, place in enumerate(places):
        if place is None:
            raise ShardError(f"{shard.url}: key '{keys[i]}' has no place; run score-reference into a new --out")
        by_group.setdefault(place[0], []).append((place[1], i))
    found = [b""] * len(keys)
    try:
        with open_read(shard.url, parts=True) as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            columns = columns_of(spec, parquet, shard.url)
            used = [name for name in (columns.image, columns.key) if name]
            for group, rows in sorted(by_group.items()):
                if group >= parquet.num_row_groups or max(rows)[0] >= parquet.metadata.row_group(group).num_rows:
                    raise _changed(shard, keys[rows[0][1]])
                before = sum(parquet.metadata.row_group(g).num_rows for g in range(group))
                table = parquet.read_row_group(group, columns=used)
                for row, i in rows:
                    key = str(before + row)
                    if columns.key:
                        key = key_text(table[columns.key][row].as_py(), shard.url, columns.key, row)
                    image = image_bytes(table[columns.image][row].as_py())
                    if key != keys[i] or not isinstance(image, bytes):
                        raise _changed(shard, keys[i])
                    found[i] = image
    except (ReadError, FileNotFoundError, ExampleError):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise ShardError(f"{shard.url}: not a readable Parquet file: {e}") from None
    return found


def _changed(shard: Shard, key: str) -> ShardError:
    return ShardError(
        f"{shard.url}: has no image of key '{key}' at the place where it was; the shard changed: run score-reference into a "
        "new --out"
    )
