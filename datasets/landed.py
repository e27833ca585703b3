"""The files of a data set that exist now, for scoring that follows a growing data set."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ..errors import ShardError, SpecError, StorageError
from .patterns import expand_braces, has_wildcard, in_folder, is_shards_folder, matching
from .shards import Shard, row_group_shards, short_names
from .spec import DatasetSpec
from .storage import Entry, full_url, list_entries, written_at

Listing = dict[str, Entry]


@dataclass(frozen=True)
class LandedFile:
    """A file as it is now. `shard` is the whole file; `version` changes when the file is written to again."""

    shard: Shard
    version: str


def landed_files(spec: DatasetSpec) -> list[LandedFile]:
    """What the patterns of the training split match now, in their order; it may be nothing.

    Shards that a pattern names and that do not exist yet are left out. Every folder is listed once, however many of its
    files are named. Raises SpecError for an image folder, whose images move between shards as it grows; ShardError
    where two shards would share a name; StorageError where the storage fails.
    """
    check_lands(spec)
    listings: dict[str, Listing] = {}
    found: Listing = {}
    for pattern in spec.train:
        for url in expand_braces(spec.name, pattern):
            found.update(_matches(spec, url, listings))
    names = short_names(list(found))
    return [_landed(name, url, entry) for name, (url, entry) in zip(names, found.items(), strict=True)]


def check_lands(spec: DatasetSpec) -> None:
    """Raises SpecError where a data set's shards are not known before all of it exists."""
    if spec.format == "folder":
        raise SpecError(
            f"data set '{spec.name}' is a folder of images, which move between its shards as it grows; "
            "only .tar and .parquet shards can be followed"
        )


def shards_of_file(spec: DatasetSpec, file: Shard) -> list[Shard]:
    """The shards of one file. Raises ShardError for a Parquet file that is not whole, StorageError as storage fails."""
    return row_group_shards(file, spec) if spec.format == "parquet" else [file]


def landed_shards(spec: DatasetSpec) -> list[Shard]:
    """All shards that exist now. A file that cannot be split yet counts as one."""
    files = [file.shard for file in landed_files(spec)]
    with ThreadPoolExecutor(16) as pool:
        return [shard for shards in pool.map(partial(_split_or_whole, spec), files) for shard in shards]


def _split_or_whole(spec: DatasetSpec, file: Shard) -> Sequence[Shard]:
    try:
        return shards_of_file(spec, file)
    except (ShardError, StorageError):
        return [file]


def _matches(spec: DatasetSpec, url: str, listings: dict[str, Listing]) -> Listing:
    """Path or URL, and what the storage says of it, of every file that a pattern without braces matches."""
    if has_wildcard(url):
        return matching(url, spec.name)
    if is_shards_folder(url, spec.format):
        return in_folder(url, spec.name, spec.format)
    url = full_url(url)
    folder = url.rpartition("/")[0]
    if folder not in listings:
        listings[folder] = list_entries(folder)
    found = {url: listings[folder][url]} if url in listings[folder] else {}
    return {url: entry for url, entry in found.items() if entry.get("type") != "directory"}


def _landed(name: str, url: str, entry: Entry) -> LandedFile:
    size = int(entry["size"] or 0)
    version = f"{size} {written_at(entry)} {entry.get('ETag', '')}"
    return LandedFile(Shard(name=name, url=url, size=size, bytes=size), version)
