"""Which shards a data set has: patterns to named, sized shards."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow.parquet as pq

from ..errors import ShardError, SpecError, StorageError, printable
from .columns import Columns, find_columns
from .fields import split_field
from .hidden import is_hidden
from .patterns import (
    HIDDEN,
    NO_FILE,
    READ_ALREADY,
    SHARD_ENDINGS,
    ending_word,
    expand,
    expand_braces,
    other_spelling,
    say_left_out,
)
from .spec import DatasetSpec
from .storage import is_folder, list_below, open_read, without_query

Split = Literal["train", "test"]
ENDINGS = tuple(ending for endings in SHARD_ENDINGS.values() for ending in endings)
# Where a part of train is held out, it is measured on the part of at most so many shards.
HELD_OUT_SHARDS = 64


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One unit of reading, scoring and committing.

    `name` is its identity in score tables. `size` shows whether a shard changed since it was scored: the bytes of the
    whole file, or the number of files of an image folder's bucket. `bytes` is what the shard takes in memory before its
    images are decoded. `row_groups` is the half-open range of a large Parquet file; `members` are an image folder's
    files; `rows` is how many examples it has, None where that is not known without reading it. Where the data set holds
    out a part of train, `held_out` says which part of the shard this is.
    """

    name: str
    url: str
    size: int
    bytes: int
    row_groups: tuple[int, int] | None = None
    members: tuple[str, ...] = ()
    rows: int | None = None
    held_out: bool = False


def check_there(spec: DatasetSpec) -> None:
    """Raises as `list_shards` does for a pattern that names no file, where looking costs next to nothing: on this machine.
    No file is opened."""
    if spec.format != "folder" and not any("://" in pattern for pattern in spec.train):
        for pattern in spec.train:
            expand(spec.name, pattern, spec.format)


def list_shards(spec: DatasetSpec, split: Split = "train") -> list[Shard]:
    """All shards of a split, in the order of the patterns.

    Raises SpecError where the split has no pattern, ShardError where a pattern matches nothing, a named file is
    missing, or two shards would share a name; StorageError where the storage fails.
    """
    if spec.hold_out:
        held_out = split == "test"
        whole = [replace(s, rows=None, held_out=held_out) for s in list_shards(replace(spec, hold_out=0.0))]
        if not held_out:
            return whole
        # Of a large data set a random part of the shards holds enough.
        return sorted(whole, key=lambda s: zlib.crc32(s.name.encode()))[:HELD_OUT_SHARDS]
    patterns = spec.train if split == "train" else spec.test
    if not patterns:
        raise SpecError(f"data set '{spec.name}' has no {split} shards; set {split} = ... in its entry")
    if spec.format == "folder":
        return _folder_shards(spec, patterns)
    files = [file for pattern in patterns for file in expand(spec.name, pattern, spec.format)]
    repeated = [url for url, count in Counter(url for url, _ in files).items() if count > 1]
    if repeated:
        raise ShardError(f"data set '{spec.name}': {repeated[0]} is matched twice; make the patterns disjoint")
    names = short_names([url for url, _ in files])
    shards = [Shard(name=n, url=url, size=size, bytes=size) for n, (url, size) in zip(names, files, strict=True)]
    return _row_groups_of_all(spec, shards) if spec.format == "parquet" else shards


def _row_groups_of_all(spec: DatasetSpec, files: Sequence[Shard]) -> list[Shard]:
    with ThreadPoolExecutor(16) as pool:
        split = list(pool.map(lambda file: _split(file, spec), files))
    never = set.intersection(*(set(columns.empty) for _, columns in split))
    if never:
        raise ShardError(
            f"data set '{spec.name}': column '{min(never)}' is null in every file: it holds no value at all; name "
            f"another one in [datasets.{spec.name}]"
        )
    return [part for parts, _ in split for part in parts]


def short_names(urls: Sequence[str]) -> list[str]:
    """Names of shards: the base name without its ending; with the folders that distinguish them where base names repeat.

    Raises ShardError for two equal names, and for a name that the score table could not hold.
    """
    stems = [printable(path_of(url)) for url in urls]
    names = [stem.rsplit("/", 1)[-1] for stem in stems]
    if len(set(names)) < len(names):
        folders = [stem.split("://")[-1].lstrip("/").split("/") for stem in stems]
        shortest = min(len(parts) for parts in folders) - 1
        common = next((i for i in range(shortest) if len({parts[i] for parts in folders}) > 1), shortest)
        names = ["--".join(parts[common:]) for parts in folders]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        both = [url for url, name in zip(urls, names, strict=True) if name == repeated[0]]
        raise ShardError(f"{both[0]} and {both[1]} would both be shard '{repeated[0]}'; rename one")
    for name, url in zip(names, urls, strict=True):
        if name.startswith(".") or not name.isprintable():
            # Tools take score files with such names for hidden ones; a name with a line break is no line in a log.
            what = "starts with a dot" if name.startswith(".") else "has a character that cannot be printed"
            raise ShardError(f"{url!r}: the shard's name {what}; rename the file")
    return names


def file_of(shard: str) -> str:
    """The name of a shard's file, without the row groups."""
    return re.sub(r"\.rg\d{5,}-\d{5,}$", "", shard)


def path_of(url: str) -> str:
    """A file's URL without its query and its ending."""
    path = without_query(url)
    for ending in ENDINGS:
        if path.endswith(ending):
            return path[: -len(ending)]
    return path


def row_group_shards(shard: Shard, spec: DatasetSpec) -> list[Shard]:
    """Split a Parquet file into runs of whole row groups of at least `rows_per_shard` rows.

    Raises ShardError where it is not a whole Parquet file or its columns are not those of the data set, ReadError where
    its storage fails.
    """
    return _split(shard, spec)[0]


def columns_of(spec: DatasetSpec, parquet: pq.ParquetFile, url: str) -> Columns:
    """The columns that a data set reads of a file. Raises ShardError."""
    return find_columns(
        parquet.schema_arrow,
        url,
        dataset=spec.name,
        image=spec.image,
        target=spec.target,
        field=spec.target_field,
        key=spec.key,
    )


def _split(shard: Shard, spec: DatasetSpec) -> tuple[list[Shard], Columns]:
    try:
        with open_read(shard.url) as file:
            parquet = pq.ParquetFile(file)
            metadata, columns = parquet.metadata, columns_of(spec, parquet, shard.url)
    except (ShardError, StorageError):
        raise
    except FileNotFoundError:
        raise ShardError(f"{shard.url}: no such file") from None
    except Exception as e:  # on damage pyarrow raises ArrowInvalid, OSError or other kinds
        raise ShardError(f"{shard.url}: not a readable Parquet file: {e}") from None
    parts: list[Shard] = []
    start = rows = size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows, size = rows + group.num_rows, size + group.total_byte_size
        if rows >= spec.rows_per_shard or number == metadata.num_row_groups - 1:
            name = f"{shard.name}.rg{start:05d}-{number + 1:05d}"
            parts.append(replace(shard, name=name, bytes=size, row_groups=(start, number + 1), rows=rows))
            start, rows, size = number + 1, 0, 0
    return (parts if len(parts) > 1 else [replace(part, name=shard.name) for part in parts]), columns


def _folder_shards(spec: DatasetSpec, roots: Sequence[str]) -> list[Shard]:
    """Spread a folder's images over buckets by a hash of their path, so that every bucket mixes the classes."""
    files: list[tuple[str, str, int]] = []
    for root in (url for pattern in roots for url in expand_braces(spec.name, pattern)):
        if not is_folder(root):
            spelled = other_spelling(root) or "; give a folder, .tar or .parquet shards"
            raise ShardError(f"data set '{spec.name}': {root} is not a folder{spelled}")
        files += _images_below(spec, root)
    if not files:
        raise ShardError(f"data set '{spec.name}': no image ({', '.join(spec.image)}) in {', '.join(roots)}")
    repeated = [key for key, count in Counter(key for key, _, _ in files).items() if count > 1]
    if repeated:
        raise ShardError(f"data set '{spec.name}': '{repeated[0]}' is in two of the folders; rename one")
    # A power of two, so that a growing folder keeps its buckets until it has doubled.
    count = 1
    while count * spec.rows_per_shard < len(files):
        count *= 2
    buckets: list[list[tuple[str, int]]] = [[] for _ in range(count)]
    for key, url, size in files:
        buckets[zlib.crc32(key.encode()) % count].append((url, size))
    return [
        Shard(
            name=f"bucket-{i:05d}-of-{count:05d}",
            url=roots[0],
            size=len(members),
            bytes=sum(size for _, size in members),
            members=tuple(url for url, _ in members),
            rows=len(members),
        )
        for i, members in enumerate(buckets)
        if members
    ]


def is_held_out(shard: str, key: str, share: float) -> bool:
    """Whether an example is in the share of train that is held out: the same examples wherever it is asked."""
    return zlib.crc32(f"{shard}/{key}".encode()) < share * 2**32


def _images_below(spec: DatasetSpec, root: str) -> list[tuple[str, str, int]]:
    """(key, URL, bytes) of the images in a folder. All else is counted and said once, but for the captions' files."""
    links: list[str] = []
    found, left_out = [], []
    beside = "" if spec.target.in_folder_name else split_field(spec.target_field)[0].lower()
    for path, (url, entry) in list_below(root, links).items():
        key = printable(path)
        ending = key.rsplit(".", 1)[-1].lower()
        if is_hidden(key):
            left_out.append((HIDDEN, key))
        elif entry.get("type") == "other":
            left_out.append((NO_FILE, key))
        elif ending in spec.image:
            found.append((key, url, int(entry["size"] or 0)))
        elif not beside or ending != beside:
            left_out.append((ending_word(key), key))
    left_out += [(READ_ALREADY, printable(link[len(root.rstrip("/")) + 1 :])) for link in links]
    say_left_out(spec.name, root, [kind for kind, _ in left_out], left_out[0][1] if left_out else "")
    return found
