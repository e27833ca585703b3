"""What the committed files of a table tell: progress while a job runs, counts when it is done."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq

from ..datasets.shards import Shard
from ..datasets.storage import filesystem, join_url
from ..errors import TableError
from ..scoring.table import ENDING, finished_shards

Report = Callable[[str], None]
PROGRESS_SECONDS = 5.0


def watch(folder: str, todo: Sequence[Shard], report: Report, stop: threading.Event) -> None:
    """A live line from the committed files: the runner itself blocks, and other runners live elsewhere."""
    waiting = {shard.name for shard in todo}
    started, examples = time.perf_counter(), 0
    while not stop.wait(PROGRESS_SECONDS):
        new = waiting & finished_shards(folder)
        waiting -= new
        examples += sum(row_count(folder, name) for name in new)
        done, seconds = len(todo) - len(waiting), time.perf_counter() - started
        if done:
            eta = seconds / done * len(waiting)
            rate = examples / seconds
            report(f"{done:,}/{len(todo):,} shards, {examples:,} examples, {rate:,.0f}/s, {eta:,.0f} s left")


def row_count(folder: str, name: str) -> int:
    fs, path = filesystem(join_url(folder, name + ENDING))
    with fs.open(path, "rb") as file:
        return int(pq.read_metadata(file).num_rows)


def shard_counts(folder: str, name: str) -> tuple[int, int, int]:
    """(examples, failures, shard size) as a score file's own metadata tells them."""
    fs, path = filesystem(join_url(folder, name + ENDING))
    try:
        with fs.open(path, "rb") as file:
            about = json.loads(pq.read_schema(file).metadata[b"curate"])
    except Exception as e:  # pyarrow raises ArrowInvalid, OSError, or a KeyError follows
        raise TableError(f"{folder}/{name}{ENDING}: damaged ({e}); delete it and run the same command again") from None
    return about["examples"], about["failures"], about["shard_size"]
