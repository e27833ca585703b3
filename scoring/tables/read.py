"""Reading a score table's state from its files: finished shards, their counts, unreadable shards, the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ...datasets.readers import Failure
from ...datasets.storage import join_url, list_names, open_read, read_bytes
from ...errors import ReadError, TableError
from .schema import ENDING, ERRORS, FAILURES, FORMAT_VERSION, MANIFEST


def finished_shards(folder: str) -> set[str]:
    """Names of the shards whose scores are committed."""
    return {name.removesuffix(ENDING) for name in list_names(folder) if is_score_file(name)}


def is_score_file(name: str) -> bool:
    """Whether a file of a table's folder is a shard's scores."""
    return name.endswith(ENDING) and not name.startswith(".")


def row_count(folder: str, name: str) -> int:
    return int(_footer(folder, name).num_rows)


def _footer(folder: str, name: str) -> pq.FileMetaData:
    """A score file's own metadata, without reading the rest of it."""
    with open_read(join_url(folder, name + ENDING)) as file:
        return pq.read_metadata(file)


class ShardCounts(NamedTuple):
    """A score file's metadata. `flops` is what scoring it cost; None in older files."""

    examples: int
    failures: int
    shard_size: int
    flops: float | None


def read_about(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """A score file's metadata, parsed. Raises KeyError, TypeError or ValueError where it is incomplete."""
    about: dict[str, Any] = json.loads(metadata[b"curate"])
    for name, kind in {"examples": int, "failures": int, "shard_size": int, "reference_fingerprint": str}.items():
        if not isinstance(about[name], kind):
            raise TypeError(f"{name} is {about[name]!r}")
    return about


def shard_counts(folder: str, name: str) -> ShardCounts:
    """A score file's own metadata, without its rows. Raises TableError where it is missing or damaged, ReadError."""
    try:
        about = read_about(_footer(folder, name).metadata)
    except ReadError:
        raise
    except FileNotFoundError:
        raise TableError(f"{folder}/{name}{ENDING}: no longer exists; run the same command again") from None
    except Exception as e:  # pyarrow raises ArrowInvalid or OSError, or read_about a KeyError
        raise TableError(f"{folder}/{name}{ENDING}: damaged ({e}); delete it and run the same command again") from None
    return ShardCounts(about["examples"], about["failures"], about["shard_size"], about.get("flops"))


def first_failure(folder: str, name: str) -> Failure | None:
    """The first failure of a shard; None where none is readable."""
    try:
        rows = (
            pq.read_table(pa.BufferReader(read_bytes(join_url(folder, FAILURES, name + ENDING))))
            .slice(0, 1)
            .to_pylist()
        )
        return Failure(**rows[0]) if rows else None
    except (OSError, TypeError, pa.ArrowException):
        return None


def error_names(folder: str) -> list[str]:
    """Names of the shards that could not be read."""
    names = list_names(join_url(folder, ERRORS))
    return [n.removesuffix(".json") for n in names if n.endswith(".json") and not n.startswith(".")]


def noted_errors(folder: str) -> dict[str, str]:
    """Shard name to error, of every shard that could not be read."""
    return {name: noted_error(folder, name) for name in error_names(folder)}


def noted_error(folder: str, name: str) -> str:
    """Why a shard could not be read. Raises FileNotFoundError where it could."""
    return str(json.loads(read_bytes(join_url(folder, ERRORS, name + ".json")))["error"])


class Manifest(dict[str, Any]):
    """A table's manifest, or an object in it. What it lacks is a TableError, which names the table."""

    folder = ""

    def __missing__(self, name: str) -> Any:
        raise _damaged(self.folder, f"it has no {name}")


def _damaged(folder: str, found: str) -> TableError:
    return TableError(f"{folder}/{MANIFEST}: damaged ({found}); restore it, or run score-reference into a new --out")


def read_manifest(folder: str) -> dict[str, Any] | None:
    """The manifest of a table, or None where there is none yet. Raises TableError where it is damaged."""

    def part(values: dict[str, Any]) -> Manifest:
        found = Manifest(values)
        found.folder = folder
        return found

    try:
        content = json.loads(read_bytes(join_url(folder, MANIFEST)), object_hook=part)
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise _damaged(folder, str(e)) from None
    if not isinstance(content, Manifest):
        raise _damaged(folder, "no JSON object")
    if content.get("format") != FORMAT_VERSION:
        raise TableError(f"{folder}: table format {content.get('format')}, this version reads {FORMAT_VERSION}")
    return content
