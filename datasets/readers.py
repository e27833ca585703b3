"""Reading a shard: a stream of examples and of the bad ones among them, in the shard's order."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ExampleError, ShardError, printable
from .shards import Shard, is_held_out
from .spec import DatasetSpec
from .storage import Reader, filesystem, open_read, read_bytes
from .targets import hash_target

TAR_END_BYTES = 1024
# With fewer examples than this, a job cannot judge the whole data set: one shard may hold all the bad ones.
MIN_JUDGED = 1000
# Members in such a folder are webdataset's own metadata. Its reader skips them too.
METADATA = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True, slots=True)
class Example:
    """One undecoded example. `target` is the class index or the caption; `target_hash` is of its stored bytes."""

    shard: str
    row: int
    key: str
    image: bytes
    target: int | str
    target_hash: int


@dataclass(frozen=True, slots=True)
class Failure:
    """One bad example: where it failed (`read`, `decode`, `target`, `loss`) and why."""

    shard: str
    row: int
    key: str
    stage: str
    reason: str


def too_many_failures(failures: int, read: int, allowed: float) -> bool:
    """Whether a running job should end: more than the allowed share failed, of enough examples to judge by."""
    return read >= MIN_JUDGED and failures > allowed * read


def read_shard(spec: DatasetSpec, shard: Shard) -> Iterator[Example | Failure]:
    """Stream one shard. Rows count every example, bad ones too.

    Raises ShardError for a fault of the whole shard: a missing, cut or unreadable file, a repeated key, a missing column.
    Raises StorageError where the storage fails. The examples that were yielded before are valid, but the caller must not
    commit the shard.
    """
    if spec.format == "webdataset":
        records = _read_tar(spec, shard)
    elif spec.format == "parquet":
        records = _read_parquet(spec, shard)
    else:
        records = _read_folder(spec, shard)
    if spec.hold_out:
        records = (r for r in records if is_held_out(shard.name, r[0], spec.hold_out) == shard.held_out)
    seen: set[str] = set()
    for row, (key, image, stored) in enumerate(records):
        if key in seen:
            raise ShardError(f"{shard.url}: key '{key}' occurs twice; an example's identity is (shard, key)")
        seen.add(key)
        try:
            if not image:
                raise ExampleError("read", f"no image ({', '.join(spec.image)})" if image is None else "image is empty")
            target = spec.target.parse(stored, spec.target_field, spec.classes, spec.format)
            yield Example(shard.name, row, key, image, target, hash_target(stored or b""))
        except ExampleError as e:
            yield Failure(shard.name, row, key, e.stage, e.reason)


def _open(shard: Shard) -> Reader:
    try:
        return open_read(shard.url)
    except FileNotFoundError:
        raise ShardError(f"{shard.url}: no such file") from None


def _read_tar(spec: DatasetSpec, shard: Shard) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """Group consecutive members by webdataset's own key rule: the stem ends at the first dot of the base name."""
    from webdataset.tariterators import base_plus_ext  # imports torch, which code that only reads specs does not need

    wanted_target = spec.target_field
    key: str | None = None
    image: bytes | None = None
    target: bytes | None = None
    endings: set[str] = set()
    with _open(shard) as file:
        # tarfile's own decompressor takes a truncated file for a normal end; gzip's does not.
        tail = _Tail(gzip.GzipFile(fileobj=file) if shard.url.split("?")[0].endswith("gz") else file)
        try:
            with tarfile.open(fileobj=cast(Any, tail), mode="r|") as tar:
                for member in tar:
                    cast(Any, tar).members = []  # tarfile keeps every member: memory would grow with the shard
                    if member.issparse():  # a few bytes can declare a terabyte of zeros
                        raise ShardError(f"{shard.url}: '{member.name}' is a sparse file; pack it without --sparse")
                    member_key, ending = base_plus_ext(printable(member.name))
                    if not member.isreg() or member_key is None or METADATA.match(member.name):
                        continue
                    if member_key != key:
                        if key is not None:
                            yield key, image, target
                        key, image, target, endings = member_key, None, None, set()
                    ending = ending.lower()
                    if ending in endings:
                        raise ShardError(f"{shard.url}: '{member.name}' occurs twice; a key has one of each ending")
                    endings.add(ending)
                    if ending == wanted_target:
                        target = _member_bytes(tar, member)
                    elif ending in spec.image and image is None:
                        image = _member_bytes(tar, member)
            while tail.read(1 << 20):
                pass
            # tarfile takes a missing end mark, or a damaged header anywhere, for a normal end.
            if not TAR_END_BYTES <= tail.size - tar.offset <= tail.zeros:
                raise tarfile.ReadError("no end-of-archive mark where the members end")
        except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
            raise ShardError(
                f"{shard.url}: the tar is cut or damaged after key '{key}' ({e}); fetch it again"
            ) from None
    if key is not None:
        yield key, image, target


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


class _Tail:
    """Forwards reads, and counts the bytes and the zeros at their end."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = self.zeros = 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        zeros = len(data) - len(data.rstrip(b"\0"))
        self.zeros = zeros + (self.zeros if zeros == len(data) else 0)
        self.size += len(data)
        return data


def _read_parquet(spec: DatasetSpec, shard: Shard) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    target_column = spec.target_field
    try:
        with _open(shard) as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            image_column = next((c for c in spec.image if c in names), None)
            for column, setting in ((image_column, "image"), (target_column, "label/text"), (spec.key or None, "key")):
                if (setting != "key" or column) and column not in names:
                    raise ShardError(
                        f"{shard.url}: no column for {setting} (looked for {column or ', '.join(spec.image)}); "
                        f"it has {', '.join(names)}; set it in [datasets.{spec.name}]"
                    )
            first, last = shard.row_groups or (0, parquet.num_row_groups)
            row = sum(parquet.metadata.row_group(g).num_rows for g in range(first))
            columns = [c for c in (image_column, target_column, spec.key) if c]
            for batch in parquet.iter_batches(batch_size=256, row_groups=list(range(first, last)), columns=columns):
                images = batch.column(image_column).to_pylist()
                targets = batch.column(target_column).to_pylist()
                keys = batch.column(spec.key).to_pylist() if spec.key else range(row, row + len(images))
                for key, image, target in zip(keys, images, targets, strict=True):
                    data = image.get("bytes") if isinstance(image, dict) else image
                    yield str(key), data, None if target is None else str(target).encode()
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise ShardError(f"{shard.url}: not a readable Parquet file: {e}") from None


def _read_folder(spec: DatasetSpec, shard: Shard) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """A class is the first folder under the root. A caption is a file next to its image, with the same stem."""
    roots = [filesystem(pattern)[1].rstrip("/") for pattern in spec.train + spec.test]
    for url in shard.members:
        path = filesystem(url)[1]
        root = max((r for r in roots if path.startswith(r + "/")), key=len)
        key = path[len(root) + 1 :]
        target: bytes | None
        if spec.target.in_folder_name:
            target = key.split("/", 1)[0].encode() if "/" in key else None
        else:
            try:
                target = read_bytes(f"{url.rsplit('.', 1)[0]}.{spec.target_field}")
            except FileNotFoundError:
                target = None
        try:
            image = read_bytes(url)
        except FileNotFoundError:
            image = None
        yield key, image, target


def to_bytes(table: pa.Table, **options: Any) -> bytes:
    """A whole Parquet file in memory, for one atomic write."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()
