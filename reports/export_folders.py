"""Exports that are a folder with one file for each source shard, or for some of them: tars, and Parquet with images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa

from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..datasets.storage import is_local, join_url, list_names
from ..datasets.writing import remove_partials
from ..units import Report
from .export_picks import Picks

PROGRESS_EVERY = 10.0

Part = tuple[Shard, pa.Table]
"""A source shard and the chosen rows of it."""
Writer = Callable[[str, DatasetSpec, Sequence[Part]], None]
"""Writes one file from some source shards. The file appears whole or not at all."""


@dataclass(frozen=True)
class File:
    """A file of the export: its name in the folder and the source shards that it is made of."""

    name: str
    shards: tuple[str, ...]


def plan_files(counts: Mapping[str, int], least: int | None, name: Callable[[int, int, str], str]) -> list[File]:
    """Whole shards, in order, until a file has at least `least` examples; None gives each shard a file.

    `name` makes a file's name of its number, how many there are, and its first shard.
    """
    groups: list[list[str]] = []
    held = 0
    for shard, rows in counts.items():
        if not groups or least is None or held >= least:
            groups.append([])
            held = 0
        groups[-1].append(shard)
        held += rows
    return [File(name(i, len(groups), group[0]), tuple(group)) for i, group in enumerate(groups)]


def write_folder(
    folder: str,
    files: Sequence[File],
    picks: Picks,
    spec: DatasetSpec,
    shards: Mapping[str, Shard],
    write: Writer,
    report: Report,
) -> None:
    """Write the files that are not there yet. A file that is there is whole."""
    if is_local(folder):
        remove_partials(folder)
    there = set(list_names(folder))
    started = told = time.monotonic()
    for done, (file, parts) in enumerate(_parts_of(files, picks, shards), 1):
        if file.name not in there:
            write(join_url(folder, file.name), spec, parts)
        if time.monotonic() - told > PROGRESS_EVERY:
            told = time.monotonic()
            report(f"{done:,} of {len(files):,} files, {told - started:.0f} s")


def _parts_of(
    files: Sequence[File], picks: Picks, shards: Mapping[str, Shard]
) -> Iterator[tuple[File, Sequence[Part]]]:
    """Every file with its parts. The picks are read once, in the files' order."""
    home = {shard: file for file in files for shard in file.shards}
    for file, group in groupby(picks.by_shard(), key=lambda found: home[found[0]]):
        yield file, [(shards[name], table) for name, table in group]
