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
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from ..errors import ShardError, SpecError, StorageError
from .spec import DatasetSpec
from .storage import glob, is_folder, list_below, list_entries, open_read, size_of

Split = Literal["train", "test"]
ENDINGS = (".tar.gz", ".tgz", ".tar", ".parquet", ".pq")


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


def list_shards(spec: DatasetSpec, split: Split = "train") -> list[Shard]:
    """All shards of a split, in the order of the patterns.

    Raises SpecError where the split has no pattern, ShardError where a pattern matches nothing, a named file is
    missing, or two shards would share a name; StorageError where the storage fails.
    """
    if spec.hold_out:
        held_out = split == "test"
        whole = [replace(s, rows=None, held_out=held_out) for s in list_shards(replace(spec, hold_out=0.0))]
        # Whoever reads only the first of the held-out shards gets a random part of them.
        return sorted(whole, key=lambda s: zlib.crc32(s.name.encode())) if held_out else whole
    patterns = spec.train if split == "train" else spec.test
    if not patterns:
        raise SpecError(f"data set '{spec.name}' has no {split} shards; set {split} = ... in its entry")
    if spec.format == "folder":
        return _folder_shards(spec, patterns)
    files = [file for pattern in patterns for file in _expand(spec.name, pattern)]
    repeated = [url for url, count in Counter(url for url, _ in files).items() if count > 1]
    if repeated:
        raise ShardError(f"data set '{spec.name}': {repeated[0]} is matched twice; make the patterns disjoint")
    names = short_names([url for url, _ in files])
    shards = [Shard(name=n, url=url, size=size, bytes=size) for n, (url, size) in zip(names, files, strict=True)]
    if spec.format == "parquet":
        with ThreadPoolExecutor(16) as pool:
            shards = [part for parts in pool.map(lambda s: row_group_shards(s, spec), shards) for part in parts]
    return shards


def _expand(dataset: str, pattern: str) -> list[tuple[str, int]]:
    """(url, size) of every file that a pattern names, in order."""
    urls = expand_braces(dataset, pattern)
    if not has_wildcard(pattern):
        return _named_files(dataset, urls)
    found: list[tuple[str, int]] = []
    for url in urls:
        matches = glob(url)
        if not matches:
            raise ShardError(f"data set '{dataset}': no shard matches '{url}'; check the path and its quoting")
        found += [(match, int(entry["size"] or 0)) for match, entry in matches.items()]
    return found


def expand_braces(dataset: str, pattern: str) -> list[str]:
    """Raises SpecError where they are unbalanced."""
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError:
        raise SpecError(f"data set '{dataset}': unbalanced braces in '{pattern}'") from None


def has_wildcard(pattern: str) -> bool:
    return any(mark in pattern for mark in "*?[")


def _named_files(dataset: str, urls: Sequence[str]) -> list[tuple[str, int]]:
    def size(url: str) -> int | None:
        try:
            return size_of(url)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size, urls)) if any("://" in u for u in urls) else [size(u) for u in urls]
    missing = [url for url, n in zip(urls, sizes, strict=True) if n is None]
    if missing:
        what = "no shard matches" if len(missing) == len(urls) else f"{len(missing)} of {len(urls)} shards are missing,"
        raise ShardError(f"data set '{dataset}': {what} {missing[0]}; check the path or its range")
    return [(url, n) for url, n in zip(urls, sizes, strict=True) if n is not None]


def short_names(urls: Sequence[str]) -> list[str]:
    """Names of shards: the base name without its ending; with the folders that distinguish them where base names repeat."""
    stems = [path_of(url) for url in urls]
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
    return names


def file_of(shard: str) -> str:
    """The name of a shard's file, without the row groups."""
    return re.sub(r"\.rg\d{5,}-\d{5,}$", "", shard)


def path_of(url: str) -> str:
    """A file's URL without its query and its ending."""
    path = url.split("?")[0]
    for ending in ENDINGS:
        if path.endswith(ending):
            return path[: -len(ending)]
    return path


def row_group_shards(shard: Shard, spec: DatasetSpec) -> list[Shard]:
    """Split a Parquet file into runs of whole row groups of at least `rows_per_shard` rows.

    Raises ShardError where it is not a whole Parquet file, ReadError where its storage fails.
    """
    try:
        with open_read(shard.url) as file:
            metadata = pq.ParquetFile(file).metadata
    except StorageError:
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
    return parts if len(parts) > 1 else [replace(part, name=shard.name) for part in parts]


def _folder_shards(spec: DatasetSpec, roots: Sequence[str]) -> list[Shard]:
    """Spread a folder's images over buckets by a hash of their path, so that every bucket mixes the classes."""
    files: list[tuple[str, str, int]] = []
    for root in (url for pattern in roots for url in braceexpand(pattern)):
        if not is_folder(root):
            raise ShardError(f"data set '{spec.name}': {root} is not a folder; give a folder, .tar or .parquet shards")
        below = ((key, url, int(entry["size"] or 0)) for key, (url, entry) in list_below(root).items())
        files += [file for file in below if file[0].rsplit(".", 1)[-1].lower() in spec.image]
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


def class_folders(root: str) -> tuple[str, ...]:
    """The class names of an image folder: its sub-folders, sorted."""
    entries = list_entries(root) if is_folder(root) else {}
    return tuple(sorted(url.rstrip("/").rsplit("/", 1)[-1] for url, e in entries.items() if e["type"] == "directory"))
