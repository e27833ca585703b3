"""How many rows each committed shard has. A table keeps the counts in one file, so that 10^5 shards take seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...datasets.readers import to_bytes
from ...datasets.storage import join_url, list_times, read_bytes
from ...datasets.writing import write_whole
from .read import ShardCounts, is_score_file, shard_counts
from .schema import ENDING

# In a separate folder: a pattern for the score files must not match it.
KEPT = ("_counts", "counts.parquet")
SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("written", pa.float64()),
        ("examples", pa.int64()),
        ("failures", pa.int64()),
        ("shard_size", pa.int64()),
        ("flops", pa.float64()),
    ]
)


def all_counts(folder: str, *, keep: bool = False) -> dict[str, ShardCounts]:
    """Counts of every committed shard, by name, sorted. Files that did not change since the last count are not opened.

    `keep` writes the counts for the next call; only the job that holds the table's lock may do so. Raises TableError
    where a file that has to be opened is damaged.
    """
    times = {
        name.removesuffix(ENDING): written
        for name, written in sorted(list_times(folder).items())
        if is_score_file(name)
    }
    kept = _read(folder)
    known = {
        name: kept[name][1] for name, time in times.items() if time is not None and kept.get(name, (None,))[0] == time
    }
    new = [name for name in times if name not in known]
    with ThreadPoolExecutor(16) as pool:
        opened = dict(zip(new, pool.map(lambda name: shard_counts(folder, name), new), strict=True))
    found = {name: known[name] if name in known else opened[name] for name in times}
    if keep and (new or len(kept) != len(found)):
        _write(folder, times, found)
    return found


def scoring_flops(manifest: Mapping[str, Any], counts: Iterable[ShardCounts]) -> float:
    """FLOPs of scoring the shards of these counts, by a table's manifest."""
    # Padding and repeated images or captions of a shard cost nothing. Older files have no FLOPs: they count in full.
    whole = manifest["flops"]["forward_per_example"]
    found: float = sum(whole * (c.examples + c.failures) if c.flops is None else c.flops for c in counts)
    return found


def _read(folder: str) -> dict[str, tuple[float, ShardCounts]]:
    try:
        columns = pq.read_table(pa.BufferReader(read_bytes(join_url(folder, *KEPT)))).to_pydict()
        rows = zip(*(columns[name] for name in SCHEMA.names), strict=True)
        return {shard: (written, ShardCounts(*counts)) for shard, written, *counts in rows}
    except (OSError, KeyError, TypeError, pa.ArrowException):
        return {}  # none yet, or damaged: then count from the score files themselves


def _write(folder: str, times: Mapping[str, float | None], found: Mapping[str, ShardCounts]) -> None:
    timed = {name: counts for name, counts in found.items() if times[name] is not None}
    columns = [list(timed), [times[name] for name in timed], *(list(c) for c in zip(*timed.values(), strict=True))]
    if timed:
        table = pa.Table.from_arrays(
            [pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA
        )
        write_whole(join_url(folder, *KEPT), to_bytes(table, compression="zstd"))
