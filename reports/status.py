"""`curate status`: how complete a score table is, read from its files, during a scoring run and after it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..datasets.shards import list_shards
from ..datasets.spec import Config, find_dataset
from ..datasets.storage import list_times
from ..errors import TableError
from ..scoring.tables.lookup import open_scores
from ..scoring.tables.read import noted_errors, shard_counts
from ..scoring.tables.schema import ENDING
from .formats import check_format

MAX_LISTED = 20
# A longer pause (seconds) between two commits means that scoring was stopped and started again.
PAUSE = 600.0


@dataclass(frozen=True)
class ShardStatus:
    """`state`: done, missing, unreadable (`reason` says why) or damaged (its score file cannot be read)."""

    shard: str
    state: str
    examples: int = 0
    failures: int = 0
    reason: str = ""


@dataclass(frozen=True)
class TableStatus:
    """A table's shards by name. `complete` is None where curate.toml lacks the data set; then no shard counts as missing.

    `rate` is examples/s since the last pause of ten minutes, `idle` the seconds since the last commit.
    """

    folder: str
    dataset: str
    reference: str
    complete: bool | None
    shards: tuple[ShardStatus, ...]
    rate: float | None
    idle: float | None

    def count(self, state: str) -> int:
        return sum(shard.state == state for shard in self.shards)

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    @property
    def failures(self) -> int:
        return sum(shard.failures for shard in self.shards)

    def to_dict(self) -> dict[str, Any]:
        states = ("done", "missing", "unreadable", "damaged")
        totals = {"examples": self.examples, "failures": self.failures, **{s: self.count(s) for s in states}}
        return {**asdict(self), "totals": totals}


def table_status(path: str, config: Config, now: float | None = None) -> TableStatus:
    """Read a table's folder (or one above it that holds exactly one), and list the shards of its data set.

    Raises TableError where there is no table, SpecError and ShardError where its data set cannot be listed.
    """
    table = open_scores(path)
    dataset = str(table.manifest["dataset"])
    wanted = (
        {shard.name for shard in list_shards(find_dataset(dataset, config))} if dataset in config.datasets else None
    )
    times = list_times(table.folder)
    written = {name: times.get(name + ENDING) for name in table.shard_names()}
    unreadable = noted_errors(table.folder)
    with ThreadPoolExecutor(16) as pool:
        found = {shard.shard: shard for shard in pool.map(lambda name: _done(table.folder, name), sorted(written))}
    for name in sorted({*unreadable, *(wanted or ())} - set(found)):
        reason = unreadable.get(name, "")
        found[name] = ShardStatus(name, "unreadable" if reason else "missing", reason=reason)
    shards = tuple(found[name] for name in sorted(found))
    commits = sorted((t, found[name].examples) for name, t in written.items() if t is not None)
    return TableStatus(
        folder=table.folder,
        dataset=dataset,
        reference=str(table.manifest["reference"]["name"]),
        complete=None if wanted is None else all(shard.state == "done" for shard in shards),
        shards=shards,
        rate=_rate(commits),
        idle=max(0.0, (time.time() if now is None else now) - commits[-1][0]) if commits else None,
    )


def _done(folder: str, name: str) -> ShardStatus:
    try:
        counts = shard_counts(folder, name)
    except TableError as e:
        return ShardStatus(name, "damaged", reason=str(e))
    return ShardStatus(name, "done", counts.examples, counts.failures)


def _rate(commits: Sequence[tuple[float, int]]) -> float | None:
    """Examples/s since the last pause. The first commit after it is not counted: its examples were scored before."""
    start = max((i + 1 for i, (a, b) in enumerate(pairwise(commits)) if b[0] - a[0] > PAUSE), default=0)
    stretch = commits[start:]
    if len(stretch) < 2 or stretch[-1][0] <= stretch[0][0]:
        return None
    return sum(examples for _, examples in stretch[1:]) / (stretch[-1][0] - stretch[0][0])


def write_status(status: TableStatus, format: str = "table", *, show_all: bool = False) -> None:
    """Print totals, and the shards with failures or not done (`show_all`: all). Raises SpecError for an unknown format."""
    check_format(format)
    if format == "json":
        sys.stdout.write(json.dumps(status.to_dict(), indent=2) + "\n")
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(status.folder)}[/bold]")
    read = status.examples + status.failures
    share = f" ({100 * status.failures / read:.2f} %)" if read else ""
    total = "" if status.complete is None else f" of {len(status.shards):,}"
    console.print(
        f"{status.count('done'):,}{total} shards done: {status.examples:,} examples scored, {status.failures:,} failed{share}; "
        f"{status.count('unreadable'):,} unreadable, {status.count('damaged'):,} damaged"
        + (f", {status.count('missing'):,} missing" if status.complete is not None else "")
    )
    if status.idle is not None:
        rate = f"{status.rate:,.0f} examples/s scored from commit to commit, " if status.rate is not None else ""
        console.print(f"{rate}last commit {ago(status.idle)} ago")
    if status.complete is None:
        console.print(
            f"data set '{escape(status.dataset)}' is not in curate.toml, so missing shards are not known; give --config"
        )
    elif not status.complete:
        first = "delete the damaged files, then " if status.count("damaged") else ""
        console.print(f"{first}run the same score-reference command again; it scores only the missing shards")
    listed = [s for s in status.shards if show_all or s.state != "done" or s.failures]
    if listed:
        console.print(_shards(listed if show_all else listed[:MAX_LISTED]))
    if len(listed) > MAX_LISTED and not show_all:
        console.print(f"… {len(listed) - MAX_LISTED:,} more; --all lists every shard")


def _shards(listed: Sequence[ShardStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (
        ("shard", "left"),
        ("state", "left"),
        ("examples", "right"),
        ("failed", "right"),
        ("why", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for shard in listed:
        counts = (f"{shard.examples:,}", f"{shard.failures:,}") if shard.state == "done" else ("", "")
        table.add_row(escape(shard.shard), shard.state, *counts, escape(shard.reason))
    return table


def ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
