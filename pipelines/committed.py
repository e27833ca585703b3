"""Progress of a running job, from the files that it commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from functools import partial

from ..datasets.shards import Shard
from ..errors import CurateError
from ..progress import Progress
from ..scoring.tables.read import error_names, finished_shards, noted_error, row_count
from ..units import Report, counted

PROGRESS_SECONDS = 5.0
# If storage does not answer, only a line of progress is lost.
PASSING = (CurateError, OSError)


def watch(folder: str, todo: Sequence[Shard], report: Report, stop: threading.Event) -> None:
    """Report progress from the committed files, because the runner blocks this process or works on other machines."""
    waiting, examples = {shard.name for shard in todo}, 0
    with Progress(report, "scoring", len(todo)) as progress:
        while not stop.wait(PROGRESS_SECONDS):
            with suppress(*PASSING):
                new = waiting & finished_shards(folder)
                examples += sum(row_count(folder, name) for name in new)
                waiting -= new
            done = len(todo) - len(waiting)
            rate = examples / progress.seconds
            words = f"{done:,}/{len(todo):,} shards, {examples:,} examples, {rate:,.0f}/s since the start"
            progress.update(done, partial(str, words))


def watch_landing(folder: str, done: Set[str], report: Report, stop: threading.Event) -> None:
    """As `watch`, for a data set without an end: a line whenever shards were scored or could not be read."""
    known, told = set(done), set(error_names(folder))
    started, examples = time.perf_counter(), 0
    while not stop.wait(PROGRESS_SECONDS):
        with suppress(*PASSING):
            new = finished_shards(folder) - known
            examples += sum(row_count(folder, name) for name in new)
            known |= new
            if new:
                minutes = (time.perf_counter() - started) / 60
                report(
                    f"{counted(len(known), 'shard')} done, {len(new):,} new; {examples:,} examples in {minutes:,.1f} minutes"
                )
            failed = set(error_names(folder))
            for name in sorted(failed - told):
                report(f"shard '{name}' cannot be read for now: {noted_error(folder, name)}")
            told = failed
