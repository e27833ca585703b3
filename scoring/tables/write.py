"""Writing a score table: shards, failures, unreadable shards, the manifest; one job at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from ... import __version__
from ...datasets.notices import say_once
from ...datasets.readers import Failure, to_bytes
from ...datasets.shards import Shard
from ...datasets.storage import filesystem, is_local, join_url
from ...datasets.writing import lock, remove, remove_partials, write_errors, write_whole
from ...errors import BusyError, without_secrets
from .schema import ENDING, ERRORS, FAILURE_SCHEMA, FAILURES, FORMAT_VERSION, MANIFEST


def commit_shard(folder: str, shard: Shard, scores: pa.Table, failures: Sequence[Failure], meta: dict[str, Any]) -> int:
    """Write a shard's failures, then its scores, which mark it as done. Returns the bytes written."""
    about = {"shard_size": shard.size, "examples": scores.num_rows, "failures": len(failures), **meta}
    written = 0
    failures_url = join_url(folder, FAILURES, shard.name + ENDING)
    if failures:
        columns = {name: [getattr(f, name) for f in failures] for name in FAILURE_SCHEMA.names}
        content = to_bytes(pa.Table.from_pydict(columns, schema=FAILURE_SCHEMA), compression="zstd")
        write_whole(failures_url, content)
        written += len(content)
    else:
        remove(failures_url)  # left by an attempt at other data that was killed before it wrote its scores
    # Embeddings do not compress: plain bytes are read faster and are no larger.
    vectors = [name for name in scores.schema.names if name.endswith("_embedding")]
    content = to_bytes(
        scores.replace_schema_metadata({"curate": json.dumps(about)}),
        compression={name: "none" if name in vectors else "zstd" for name in _leaf_columns(scores.schema)},
        use_dictionary=["shard"],
        write_page_checksum=True,
    )
    write_whole(join_url(folder, shard.name + ENDING), content)
    return written + len(content)


def _leaf_columns(schema: pa.Schema) -> list[str]:
    return [f"{f.name}.list.element" if pa.types.is_fixed_size_list(f.type) else f.name for f in schema]


def note_error(folder: str, shard: Shard, message: str) -> None:
    """Record a shard that could not be read, for the end of the job and for `curate status`."""
    content = json.dumps(
        {"shard": shard.name, "url": without_secrets(shard.url), "error": without_secrets(message)}
    ).encode()
    write_whole(join_url(folder, ERRORS, shard.name + ".json"), content)


def clear_error(folder: str, name: str) -> None:
    remove(join_url(folder, ERRORS, name + ".json"))


def write_manifest(folder: str, manifest: Mapping[str, Any]) -> None:
    """Write _manifest.json, with the format's version and that of this code."""
    content = {"format": FORMAT_VERSION, "code_version": __version__, **manifest}
    write_whole(join_url(folder, MANIFEST), json.dumps(content, indent=2, sort_keys=True).encode())


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Lock the table for one job. The lock ends with its process, so a killed job never blocks the next one, which
    removes the files that were left half-written.

    Only local folders are locked. On object stores two jobs do the same work twice but never mix it: each writes a
    shard in one request, with the same content.
    """
    if not is_local(folder):
        yield
        return
    path = os.path.join(filesystem(folder)[1], ".lock")
    with write_errors(path):
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
        try:
            unlocked = lock(file)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise BusyError(f"{folder}: {owner} is writing this table; wait for it or stop it") from None
        if unlocked:
            say_once(("locks", folder), f"{folder}: {unlocked}; let no other job write this table")
        with suppress(OSError):  # on a full disk the lock still works, only its owner's name is missing
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()}".encode())
        remove_partials(os.path.dirname(path))
        try:
            yield
        finally:
            remove_partials(os.path.dirname(path))
