"""How far long work is: a bar on a terminal, lines elsewhere, nothing where it takes less than five seconds.

A library's caller gives a `Report` and gets lines. The command line gives a `Screen`, which may draw bars. A report may have
a `bar` method as `Screen` has, and a `note` method for lines that are kept while a bar is shown.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, Self

from .units import NOT_WORTH_SAYING, Report, format_duration

# Lines come at growing intervals, so that the log of a week can still be read.
LONGEST_PAUSE = 60.0
# A bar is drawn earlier where the pace so far says that the work is long.
SOON = 1.0
TICK = 0.5


class Bar(Protocol):
    """What draws a bar. `share` is what is done, in [0, 1]; None where nobody knows."""

    def update(self, share: float | None, text: str) -> None: ...
    def close(self) -> None: ...


class Screen:
    """A report to standard error, which draws bars if that is a terminal."""

    def __call__(self, line: str) -> None:
        """Print a line. A stream that is closed or full never ends the work."""
        with suppress(OSError, ValueError):
            print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece: other threads report too

    def bar(self, what: str) -> Bar | None:
        """A bar with this heading; None where standard error cannot show one."""
        dumb = os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")
        if dumb or sys.stderr is None or not sys.stderr.isatty():
            return None
        return _RichBar(what)


class Progress:
    """Progress of one piece of work, of which `total` is to be done (0 where nobody knows) and `first` was done before.

    What is done may be counted in anything that grows as the time does.
    """

    def __init__(self, report: Report, what: str, total: float, *, first: float = 0.0) -> None:
        self._report, self._what, self._total, self._first = report, what, total, first
        self._started = time.perf_counter()
        self._next = self._started + NOT_WORTH_SAYING
        self._bar: Bar | None = None
        self._draws: Callable[[str], Bar | None] | None = getattr(report, "bar", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def expect(self, total: float) -> None:
        """It ends at another number."""
        self._total = total

    def update(self, done: float, text: Callable[[], str]) -> None:
        """Say that so much is done. `text` makes the words, and is called only if they are shown."""
        seconds = self.seconds
        late = self._started + seconds >= self._next
        if not late and self._bar is None and seconds < SOON:
            return
        left = self._left(done, seconds)
        if self._bar is None and self._draws and (late or (left or 0.0) > NOT_WORTH_SAYING):
            self._bar = self._draws(self._what)
            self._draws = None
        if self._bar is None and not late:
            return
        words = text() + (f", {format_duration(left)} left" if left is not None and left >= NOT_WORTH_SAYING else "")
        if self._bar is not None:
            self._bar.update(min(1.0, done / self._total) if self._total else None, words)
        if late:
            pause = min(LONGEST_PAUSE, max(NOT_WORTH_SAYING, seconds / 2))
            self._next = self._started + seconds + pause
            tell = self._report if self._bar is None else getattr(self._report, "note", None)
            if tell is not None:
                tell(f"{self._what}: {words}")

    def _left(self, done: float, seconds: float) -> float | None:
        """Seconds that are left at the pace so far; None where it is not known."""
        if not self._total or done <= self._first:
            return None
        return seconds * max(0.0, self._total - done) / (done - self._first)


@contextmanager
def working(report: Report, what: str) -> Iterator[None]:
    """Say while the block runs that it does, and for how long: for work that cannot say how far it is."""
    ended = threading.Event()
    with Progress(report, what, 0) as progress:

        def tell() -> None:
            while not ended.wait(TICK):
                progress.update(0, lambda: f"{format_duration(progress.seconds)} so far")

        thread = threading.Thread(target=tell, daemon=True, name="progress")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _RichBar:
    """rich's bar on standard error; it goes away when the work is done. Lines that are printed meanwhile appear above it."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns: list[Any] = [TextColumn("{task.description}", markup=False)]
        columns += [BarColumn(bar_width=20), TextColumn("{task.fields[words]}", markup=False)]
        self._progress = Progress(
            *columns,
            console=Console(stderr=True, highlight=False),
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,  # results go to standard output, which may be a file
        )
        self._task = self._progress.add_task(what, total=None, words="")

    def update(self, share: float | None, text: str) -> None:
        total = None if share is None else 1.0
        self._progress.update(self._task, total=total, completed=share or 0.0, words=text)
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()
