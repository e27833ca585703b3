"""The chosen rows on disk, sorted by shard: read a batch at a time, so that memory does not grow with the export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..datasets.shards import Shard
from ..datasets.storage import open_read
from ..errors import QueryError


@dataclass(frozen=True)
class Picks:
    """A Parquet file with shard, key and the query's other columns."""

    url: str

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, in order."""
        with open_read(self.url) as file:
            yield from pq.ParquetFile(file).iter_batches(columns=columns)

    @cached_property
    def schema(self) -> pa.Schema:
        with open_read(self.url) as file:
            return pq.read_schema(file)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many rows each shard has, in the order of the shards. Raises QueryError for a row that names no example."""
        found: dict[str, int] = {}
        for batch in self.batches(["shard", "key"]):
            if any(column.null_count for column in batch.columns):
                raise QueryError(
                    "the query gives rows whose shard or key is NULL, which name no example; add WHERE shard IS NOT NULL AND "
                    "key IS NOT NULL"
                )
            for shard, rows in _runs(batch["shard"]):
                found[shard] = found.get(shard, 0) + rows
        return found

    @property
    def rows(self) -> int:
        return sum(self.counts.values())

    def by_shard(self) -> Iterator[tuple[str, pa.Table]]:
        """The rows of each shard, in the order of the shards."""
        name, parts = "", list[pa.RecordBatch]()
        for batch in self.batches():
            start = 0
            for shard, rows in _runs(batch["shard"]):
                if shard != name and parts:
                    yield name, pa.Table.from_batches(parts)
                    parts = []
                name = shard
                parts.append(batch.slice(start, rows))
                start += rows
        if parts:
            yield name, pa.Table.from_batches(parts)


def _runs(column: pa.Array) -> Iterator[tuple[str, int]]:
    """(value, how often it is repeated) of every run of equal values."""
    encoded = pc.run_end_encode(column.cast(pa.string()))
    start = 0
    for value, end in zip(encoded.values.to_pylist(), encoded.run_ends.to_pylist(), strict=True):
        yield value, end - start
        start = end


def check_found(shard: Shard, wanted: set[str], found: set[str], why: str = "") -> None:
    """Raises QueryError where the source lacks a chosen key. `why` is there where its example is bad."""
    missing = sorted(wanted - found)
    if missing:
        why = why or f"{shard.url} has no such key; the data changed since it was scored, or the keys are of other data"
        raise QueryError(
            f"shard '{shard.name}': {len(missing):,} of {len(wanted):,} chosen examples cannot be exported, first "
            f"'{missing[0]}': {why}"
        )
