"""Exports that are one file: keys as text or JSON lines, rows as Parquet, DataComp's array of uids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import numpy as np
import pyarrow.parquet as pq

from ..datasets.fields import MAX_JSON_BYTES
from ..datasets.shards import Shard
from ..datasets.tars import tar_members
from ..datasets.writing import whole_file
from ..errors import QueryError, SpecError
from .export_picks import Picks, check_found
from .export_select import UID

# The resharder of DataComp compares 128-bit uids as (upper, lower) pairs of 64-bit numbers, by binary search.
UIDS = np.dtype("u8,u8")
JSON_MEMBER = "json"


def write_keys(url: str, picks: Picks) -> None:
    """`.jsonl`: an object with all columns on each line. Else text: shard, a tab, and key."""
    with whole_file(url) as partial, open(partial, "wb") as file:
        if url.lower().endswith(".jsonl"):
            _write_jsonl(file, picks)
        else:
            _write_text(file, picks)


def _write_jsonl(file: IO[bytes], picks: Picks) -> None:
    for batch in picks.batches():
        for row in batch.to_pylist():
            finite = {name: None if value != value else value for name, value in row.items()}  # JSON has no NaN
            file.write(json.dumps(finite, ensure_ascii=False, default=str).encode() + b"\n")


def _write_text(file: IO[bytes], picks: Picks) -> None:
    for batch in picks.batches(["shard", "key"]):
        for shard, key in zip(batch["shard"].to_pylist(), batch["key"].to_pylist(), strict=True):
            if re.search(r"[\t\r\n]", f"{shard}{key}"):
                raise QueryError(f"shard '{shard}', key {key!r}: text cannot hold tabs and line breaks; export .jsonl")
            file.write(f"{shard}\t{key}\n".encode())


def write_rows(url: str, picks: Picks) -> None:
    """One Parquet file: shard, key, and the query's other columns."""
    with whole_file(url) as partial, pq.ParquetWriter(partial, picks.schema, compression="zstd") as writer:
        for batch in picks.batches():
            writer.write_batch(batch)


def write_uids(url: str, picks: Picks, shards: Mapping[str, Shard], source: str | None) -> int:
    """Sorted, unique uids as a `.npy` file of dtype `u8,u8`; returns how many. 16 bytes of memory for each row.

    `source` says where they come from: `json`, `key` or `metadata` (a column of the picks); None is the column uid where
    there is one, else json. Raises QueryError for a uid that is missing or no hexadecimal number of up to 128 bits.
    """
    if source is None:
        source = UID if UID in picks.schema.names else JSON_MEMBER
    found = (
        _from_json(picks, shards) if source == JSON_MEMBER else _from_column(picks, "key" if source == "key" else UID)
    )
    uids = np.fromiter(found, dtype=UIDS, count=picks.rows)
    uids = uids[np.lexsort((uids["f1"], uids["f0"]))]
    first = np.ones(len(uids), dtype=bool)
    first[1:] = uids[1:] != uids[:-1]
    uids = uids[first]
    with whole_file(url) as partial, open(partial, "wb") as file:
        np.save(file, uids)
    return len(uids)


def _from_column(picks: Picks, column: str) -> Iterator[tuple[int, int]]:
    if column not in picks.schema.names:
        raise SpecError("the data set has no Parquet files with a column uid next to its tars; give --uid json or key")
    for batch in picks.batches(sorted({"shard", "key", column})):
        rows = zip(*(batch[name].to_pylist() for name in ("shard", "key", column)), strict=True)
        for shard, key, uid in rows:
            yield parse_uid(uid, shard, key)


def _from_json(picks: Picks, shards: Mapping[str, Shard]) -> Iterator[tuple[int, int]]:
    """The field uid of every chosen example's .json member. Every tar is read once."""
    for name, table in picks.by_shard():
        shard, wanted, found = shards[name], set(table["key"].to_pylist()), set[str]()
        members = tar_members(
            shard,
            lambda key, ending, keys=wanted: (  # type: ignore[misc]
                (MAX_JSON_BYTES, "read") if ending == JSON_MEMBER and key in keys else None
            ),
        )
        for member in (m for m in members if m.content is not None):
            try:
                content: Any = json.loads(cast(bytes, member.content))
                uid = content[UID]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise QueryError(
                    f"shard '{name}', key '{member.key}': {member.name} is no JSON object with the field '{UID}'; "
                    "give --uid key or metadata, or a query with the column uid"
                ) from None
            found.add(member.key)
            yield parse_uid(uid, name, member.key)
        check_found(
            shard, wanted, found, "it has no .json member; --uid key and --uid metadata take the uids from elsewhere"
        )


def parse_uid(uid: object, shard: str, key: str) -> tuple[int, int]:
    """The upper and the lower 64 bits of a uid. Raises QueryError."""
    if not isinstance(uid, str) or not re.fullmatch(r"[0-9a-fA-F]{1,32}", uid):
        raise QueryError(f"shard '{shard}', key '{key}': the uid is {uid!r}, expected up to 32 hexadecimal digits")
    return divmod(int(uid, 16), 1 << 64)
