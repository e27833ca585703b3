"""Score files that passed the check, remembered on this machine: a resume, and the next run of a comparison, read none of
them again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ...datasets.readers import to_bytes
from ...datasets.storage import Version, full_url
from ...datasets.writing import write_whole
from ...errors import StorageError

# A table of fewer bytes is checked as fast as it is recalled.
LEAST_BYTES = 64 << 20
MOST_TABLES = 64
SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("size", pa.int64()),
        ("written", pa.float64()),
        ("tag", pa.string()),
        ("examples", pa.int64()),
        ("failures", pa.int64()),
    ]
)


class Passed(NamedTuple):
    """What a score file that passed the check holds."""

    examples: int
    failures: int


def cache_folder() -> Path:
    return Path.home() / ".cache" / "curate" / "checked"


def passed_before(folder: str, reference: str, versions: Mapping[str, Version]) -> dict[str, Passed]:
    """Those of the files, by shard, that passed as they are now: same size, time of writing and store's version."""
    if not _is_large(versions):
        return {}
    try:
        columns = pq.read_table(pa.BufferReader(_path(folder, reference).read_bytes())).to_pydict()
        rows = zip(*(columns[name] for name in SCHEMA.names), strict=True)
        noted = {shard: (Version(*about[:3]), Passed(*about[3:])) for shard, *about in rows}
    except (OSError, RuntimeError, KeyError, TypeError, pa.ArrowException):
        return {}  # none yet, damaged, or no home folder: then the files are read
    return {name: noted[name][1] for name, now in versions.items() if name in noted and noted[name][0] == now}


def note_passed(folder: str, reference: str, versions: Mapping[str, Version], passed: Mapping[str, Passed]) -> None:
    """Remember the files that passed. What was written just now is left out: a later version could look the same."""
    if not _is_large(versions):
        return
    rows = [(name, *version, *passed[name]) for name, version in versions.items() if version.is_known]
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    table = pa.Table.from_arrays([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)
    with suppress(OSError, RuntimeError, StorageError):  # a home folder that cannot be written costs time alone
        path = _path(folder, reference)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_bytes(table, compression="zstd"))
        for old in sorted(path.parent.glob("*.parquet"), key=lambda p: p.stat().st_mtime)[:-MOST_TABLES]:
            old.unlink(missing_ok=True)


def _is_large(versions: Mapping[str, Version]) -> bool:
    return sum(version.size for version in versions.values()) >= LEAST_BYTES


def _path(folder: str, reference: str) -> Path:
    digest = hashlib.sha256(f"{full_url(folder)}\n{reference}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder() / f"{digest}.parquet"
