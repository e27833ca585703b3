"""Whose shards a table holds. Two data sets may have one name, such as `train` of two paths that end alike.

The manifest has the folders that the shards were read from. A shard that is scored and lies elsewhere now is either the
same one, moved or mirrored, or another data set's: its size and its targets tell.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ...datasets.patterns import expand_braces
from ...datasets.readers import Example, read_shard
from ...datasets.shards import Shard
from ...datasets.spec import DatasetSpec
from ...datasets.storage import filesystem, is_local
from ...errors import TableError, without_secrets
from .counts import all_counts
from .lookup import ScoreTable

# A data set over more folders than this is known by the folders above them.
MOST_FOLDERS = 64
BELOW = "/**"
COMPARED_EXAMPLES = 64


def source_of(
    folder: str, dataset: DatasetSpec, shards: Sequence[Shard], before: Mapping[str, Any] | None = None
) -> dict[str, list[str]]:
    """What the manifest of the table in `folder` says of where its shards are, with what it said `before`.

    `folders` are absolute. `relative` are those on this machine's disks as seen from the table: they stay right where a
    project is moved as a whole.
    """
    found = {place for shard in shards for place in _places(dataset, shard)}
    known = before or {}
    return {
        "folders": _few({*known.get("folders", ()), *found}),
        "relative": _few({*known.get("relative", ()), *(_relative(folder, place) for place in found)} - {""}),
    }


def check_source(
    folder: str, manifest: Mapping[str, Any], dataset: DatasetSpec, shards: Sequence[Shard], done: Collection[str]
) -> int:
    """Returns how many examples were compared, because shards were moved. Raises TableError for another data set's."""
    if not done:
        return 0
    known = manifest.get("source") or {"folders": [], "relative": []}
    moved, at_home = [], 0
    for shard in shards:
        if any(_is_known(folder, place, known) for place in _places(dataset, shard)):
            at_home += 1
        elif shard.name in done:
            moved.append(shard)
    if moved:
        return _check_moved(folder, manifest, dataset, moved)
    if shards and not at_home and known["folders"]:
        raise TableError(
            f"{folder}: is of shards in {_shown(known)}, '{dataset.name}' has none there but others in "
            f"{_places(dataset, shards[0])[0]}; {_WAY_OUT}, or, where it is the same data set that grew, list both in train ="
        )
    return 0


_WAY_OUT = "if it is another data set, enter it in curate.toml under a name of its own or choose another --out"


def _check_moved(folder: str, manifest: Mapping[str, Any], dataset: DatasetSpec, moved: Sequence[Shard]) -> int:
    """Sizes of all shards, and the first targets of three of them, must be those that were scored."""
    counts = all_counts(folder)
    known = manifest.get("source")
    was = f"scored from {_shown(known)} and lies in" if known and known["folders"] else "scored before and is now in"
    table, compared = ScoreTable(folder, dict(manifest)), 0

    def refuse(shard: Shard, what: str) -> TableError:
        return TableError(
            f"{folder}: shard '{shard.name}' was {was} {_places(dataset, shard)[0]}, where {what}; {_WAY_OUT}"
        )

    for shard in moved:
        if shard.name in counts and counts[shard.name].shard_size != shard.size:
            raise refuse(shard, f"its size is {shard.size} instead of {counts[shard.name].shard_size}")
    for shard in {s.name: s for s in (moved[0], moved[len(moved) // 2], moved[-1])}.values():
        scores = table.shard(shard.name)
        for example in islice(read_shard(dataset, shard), COMPARED_EXAMPLES):
            if not isinstance(example, Example) or example.key in scores.failed_keys:
                continue
            place = scores.places.get(example.key)
            if place is None:
                raise refuse(shard, f"it has the key '{example.key}', which was not scored")
            stored = int(scores.target_hash[place])
            if stored != example.target_hash:
                raise refuse(
                    shard,
                    f"the hash of key '{example.key}', {dataset.target.word} {str(example.target)[:40]!r}, is "
                    f"{example.target_hash:016x} instead of {stored:016x}",
                )
            compared += 1
    return compared


def _places(dataset: DatasetSpec, shard: Shard) -> list[str]:
    """The folder that a shard lies in; all roots of a folder of images, whose shards mix them."""
    if not shard.members:
        return [without_secrets(shard.url).rpartition("/")[0]]
    roots = [url for pattern in dataset.train for url in expand_braces(dataset.name, pattern)]
    return [without_secrets(root).rstrip("/") for root in roots]


def _relative(folder: str, place: str) -> str:
    """A folder as seen from the table's; empty where they are not both on this machine's disks."""
    if "://" in place or not is_local(folder):
        return ""
    return os.path.relpath(place, filesystem(folder)[1])


def _is_known(folder: str, place: str, known: Mapping[str, Sequence[str]]) -> bool:
    return _within(place, known["folders"]) or _within(_relative(folder, place), known["relative"])


def _within(place: str, folders: Sequence[str]) -> bool:
    return bool(place) and any(
        place == known or (known.endswith(BELOW) and f"{place}/".startswith(known.removesuffix("**")))
        for known in folders
    )


def _few(folders: Iterable[str]) -> list[str]:
    """The folders, or those above them where there are many."""
    found = set(folders)
    while len(found) > MOST_FOLDERS and any("/" in folder.removesuffix(BELOW) for folder in found):
        found = {folder.removesuffix(BELOW).rpartition("/")[0] + BELOW for folder in found}
    return sorted(found)


def _shown(source: Mapping[str, Sequence[str]]) -> str:
    folders = source["folders"]
    return folders[0] if len(folders) == 1 else f"{folders[0]} and {len(folders) - 1} more folders"
