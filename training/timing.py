"""Seconds by stage of a run: where the time of its loop goes.

A run's time is one line that is cut at the beginning and the end of every stage, so all stages with `other` add up to it.
On a GPU the cuts are events in the stream: a stage then has the device's time, and `data` is how long the device waited for
data. Events are read when they have happened; nothing waits for the device.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

# In no stage; in torch.compile's compiler; in evaluations.
OTHER, COMPILE, EVALUATE = "other", "compile", "evaluate"
# Time that depends on how a run is watched and on what was compiled before, not on how it trains.
APART = (COMPILE, EVALUATE)
# Waiting for the next super-batch, and for the images that were chosen of it.
DATA = ("data", "decode")


class Stages:
    """Adds up the seconds of each stage. Within a stage another may begin; its seconds are its own alone.

    `compiled` gives what torch.compile takes a stage of its own. `clock` and `make_event` are for tests.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        compiled: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        make_event: Callable[[], Any] | None = None,
    ) -> None:
        on_gpu = device is not None and device.type == "cuda"
        self._marks: Any = _Events(make_event or _timed_event) if on_gpu or make_event else _Clock(clock)
        self._compiled = compiled
        self._seconds: dict[str, float] = {}
        self._within: list[str] = []
        self._last: Any = None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time what runs within."""
        alone = self._last is None
        self._enter(stage)
        try:
            yield
        finally:
            self._leave()
            if alone:
                self._last = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, what lies between stages is `other`. Outside, only stages are counted."""
        self._last = self._marks.now()
        try:
            with _compiling(self._enter, self._leave) if self._compiled else _nothing():
                yield
        finally:
            self._cut()
            self._last = None

    def _enter(self, stage: str) -> None:
        self._cut()
        self._within.append(stage)

    def _leave(self) -> None:
        self._cut()
        self._within.pop()

    def _cut(self) -> None:
        """What has passed since the cut before belongs to the innermost stage."""
        now = self._marks.now()
        if self._last is not None:
            self._marks.add(self._within[-1] if self._within else OTHER, self._last, now)
        self._last = now
        self._read(wait=False)

    def _read(self, wait: bool) -> None:
        for stage, seconds in self._marks.done(wait):
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def so_far(self) -> dict[str, float]:
        """Seconds by stage, of what the device has done: on a GPU that may end some steps ago."""
        if self._last is not None:
            self._cut()
        return dict(self._seconds)

    def state_dict(self) -> dict[str, float]:
        """Seconds by stage, up to now. Waits for the device."""
        if self._last is not None:
            self._cut()
        self._read(wait=True)
        return dict(self._seconds)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._read(wait=True)
        self._seconds = dict(state)


def total(seconds: Mapping[str, float]) -> float:
    """All seconds of the loop."""
    return sum(seconds.values())


def training(seconds: Mapping[str, float]) -> float:
    """All but compiling and evaluating."""
    return sum(value for stage, value in seconds.items() if stage not in APART)


class Rates:
    """How fast a run was since the line before: what stands on each line of its metrics.

    `peak` is the FLOP/s of all its devices at its precision, None where nobody knows it.
    """

    def __init__(self, step: int, seconds: Mapping[str, float], flops: float, peak: float | None) -> None:
        self._peak = peak
        self._before = (step, dict(seconds), flops)

    def since(self, step: int, seconds: Mapping[str, float], flops: float, batch_size: int) -> dict[str, float | None]:
        """`samples_per_second` counts examples trained on, `mfu` the FLOPs that the ledger counts for the run's own work,
        `data_share` is the share of the time spent waiting for data and decoding chosen images. Compiling and evaluating are
        left out."""
        before, then, spent = self._before
        self._before = (step, dict(seconds), flops)
        passed = training(seconds) - training(then)
        if passed <= 0 or step <= before:
            return {"samples_per_second": None, "mfu": None, "data_share": None}
        return {
            "samples_per_second": (step - before) * batch_size / passed,
            "mfu": None if self._peak is None else (flops - spent) / passed / self._peak,
            "data_share": sum(seconds.get(stage, 0.0) - then.get(stage, 0.0) for stage in DATA) / passed,
        }


class _Clock:
    """Cuts by the host's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.now = clock
        self._done: list[tuple[str, float]] = []

    def add(self, stage: str, begin: float, end: float) -> None:
        self._done.append((stage, end - begin))

    def done(self, wait: bool) -> list[tuple[str, float]]:
        found, self._done = self._done, []
        return found


class _Events:
    """Cuts by events in the device's stream, which are read once the device has passed them."""

    def __init__(self, make_event: Callable[[], Any]) -> None:
        self._make = make_event
        self._free: list[Any] = []
        self._pending: deque[tuple[str, Any, Any]] = deque()

    def now(self) -> Any:
        event = self._free.pop() if self._free else self._make()
        event.record()
        return event

    def add(self, stage: str, begin: Any, end: Any) -> None:
        self._pending.append((stage, begin, end))

    def done(self, wait: bool) -> list[tuple[str, float]]:
        if wait and self._pending:
            self._pending[-1][2].synchronize()
        found = []
        while self._pending and self._pending[0][2].query():
            stage, begin, end = self._pending.popleft()
            found.append((stage, begin.elapsed_time(end) / 1000))
            self._free.append(begin)  # its end begins the next, and is still needed
        return found


def _timed_event() -> Any:
    return torch.cuda.Event(enable_timing=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _compiling(enter: Callable[[str], None], leave: Callable[[], None]) -> Iterator[None]:
    """Calls both round whatever torch.compile compiles within, for this thread. What another thread compiles (a copy that
    scores ahead) costs this one no time but where it waits for it."""
    from torch._dynamo.callback import callback_handler

    thread, entered = threading.get_ident(), []

    def begins(arguments: Any) -> None:
        if threading.get_ident() == thread:
            entered.append(True)
            enter(COMPILE)

    def ends(arguments: Any) -> None:
        if threading.get_ident() == thread and entered:
            entered.pop()
            leave()

    callback_handler.register_start_callback(begins)
    callback_handler.register_end_callback(ends)
    try:
        yield
    finally:
        for remove, callback in (
            (callback_handler.remove_start_callback, begins),
            (callback_handler.remove_end_callback, ends),
        ):
            with suppress(ValueError):  # torch._dynamo.reset() forgets them
                remove(callback)
