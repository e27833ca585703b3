"""Progress of a running job, from the files that it commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence, Set

from ..datasets.shards import Shard
from ..scoring.table import finished_shards, noted_errors, row_count

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


def watch_landing(folder: str, done: Set[str], report: Report, stop: threading.Event) -> None:
    """As `watch`, where nobody knows how much will come: a line whenever shards were scored or could not be read."""
    known, told = set(done), noted_errors(folder)
    started, examples = time.perf_counter(), 0
    while not stop.wait(PROGRESS_SECONDS):
        new = finished_shards(folder) - known
        known |= new
        examples += sum(row_count(folder, name) for name in new)
        if new:
            minutes = (time.perf_counter() - started) / 60
            report(f"{len(known):,} shards done, {len(new):,} new; {examples:,} examples in {minutes:,.1f} minutes")
        errors = noted_errors(folder)
        for name, error in errors.items():
            if told.get(name) != error:
                report(f"shard '{name}' cannot be read for now: {error}")
        told = errors
