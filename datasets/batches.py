"""From a stream of undecoded examples to decoded batches, read and decoded ahead in threads."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np

from ..errors import ExampleError
from ..threads import cores
from .decoding import Geometry, View, look
from .readers import Example, Failure

T = TypeVar("T")
R = TypeVar("R")
_END = object()
# Who closes does not wait longer for a source in the middle of an item, and Python's end not longer for all threads.
SECONDS_TO_CLOSE, SECONDS_TO_END = 0.5, 2.0
_daemons: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_prefetched: weakref.WeakSet[Prefetched[Any]] = weakref.WeakSet()


@dataclass(frozen=True)
class DecodedBatch:
    """`pixels` uint8 [B, size, size, 3] of the B examples that decoded; the others are `failures`."""

    examples: list[Example]
    pixels: np.ndarray
    failures: list[Failure]
    seconds: dict[str, float] = field(default_factory=dict)


def decode_threads() -> int:
    """One per core that this process may use: Pillow decodes outside the interpreter's lock."""
    return cores()


Look = Callable[[Sequence[Example], View], list[Any]]
"""What a view makes of every example, or the Failure, in order."""


def decoded_batches(
    records: Iterable[Example | Failure],
    geometry: Geometry,
    batch_size: int,
    threads: int | None = None,
    look_at: Look | None = None,
) -> Iterator[DecodedBatch]:
    """Decode a shard's records, `batch_size` at a time, in order. Bad images become failures of stage `decode`.

    A thread reads the next batch meanwhile. `look_at`, if given, decodes in place of threads of its own.
    """
    threads = threads or decode_threads()
    chunks = prefetch(batched_with_seconds(records, batch_size), depth=1)
    with closing(chunks), ThreadPoolExecutor(threads) as pool:
        for chunk, read_seconds in chunks:
            started = time.perf_counter()
            failures = [r for r in chunk if isinstance(r, Failure)]
            examples = [r for r in chunk if isinstance(r, Example)]
            decoded = look_at(examples, geometry) if look_at else decode_all(examples, geometry, pool, threads)
            kept = [(e, p) for e, p in zip(examples, decoded, strict=True) if isinstance(p, np.ndarray)]
            failures += [p for p in decoded if isinstance(p, Failure)]
            pixels = (
                np.stack([p for _, p in kept])
                if kept
                else np.empty((0, geometry.size, geometry.size, 3), dtype=np.uint8)
            )
            seconds = {"read": read_seconds, "decode": time.perf_counter() - started}
            yield DecodedBatch([e for e, _ in kept], pixels, failures, seconds)


def decode_all(examples: Sequence[Example], view: View, pool: Executor, threads: int | None = None) -> list[Any]:
    """What the view makes of every example (pixels uint8 [size, size, 3] for a geometry), or the Failure, in order.

    `threads` are those of the pool; by default as many as `decode_threads`.
    """
    # Every thread gets a part. Handing over a single image would cost more than decoding a small one.
    parts = list(batched(examples, max(8, -(-len(examples) // (threads or decode_threads())))))
    return [seen for part in pool.map(lambda p: [_look_at(e, view) for e in p], parts) for seen in part]


def _look_at(example: Example, view: View) -> Any:
    try:
        return look(example.image, view)
    except ExampleError as e:
        return Failure(example.shard, example.row, example.key, e.stage, e.reason)


def batched(records: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """itertools.batched, which Python has from 3.12 on."""
    source = iter(records)
    while chunk := tuple(islice(source, size)):
        yield chunk


def batched_with_seconds(records: Iterable[T], batch_size: int) -> Iterator[tuple[tuple[T, ...], float]]:
    """Like itertools.batched, with the seconds that drawing each batch took."""
    source = iter(batched(records, batch_size))
    while True:
        started = time.perf_counter()
        chunk = next(source, None)
        if chunk is None:
            return
        yield chunk, time.perf_counter() - started


class Prefetched(Iterator[T]):
    """A source that runs in a thread, at most `depth` items ahead. Made by `prefetch`."""

    def __init__(self, source: Iterable[T], depth: int) -> None:
        self._items: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._ended = False
        self._thread = daemon("prefetch", _run_ahead, source, self._items, self._stopped)
        _prefetched.add(self)

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item, error = self._items.get()
        if item is _END:
            self._ended = True
            raise error or StopIteration
        return cast(T, item)

    def next_if_made(self) -> T | None:
        """What will be given next, if it is made already. It is not taken."""
        with self._items.mutex:
            item, _ = self._items.queue[0] if self._items.queue and not self._ended else (_END, None)
        return None if item is _END else cast(T, item)

    def close(self) -> None:
        """Stop the thread and close the source. A source that hangs is left behind: its thread does not keep the process."""
        self.stop()
        with suppress(queue.Empty):  # the thread may be waiting for room
            while True:
                self._items.get_nowait()
        self._thread.join(SECONDS_TO_CLOSE)

    def stop(self) -> None:
        """The same without waiting for the thread."""
        self._ended = True
        self._stopped.set()

    def wait(self) -> None:
        """Wait until the thread has ended, after `close`."""
        self._thread.join()

    def __del__(self) -> None:
        self._stopped.set()


def prefetch(source: Iterable[T], depth: int = 2) -> Prefetched[T]:
    """Run `source` in a thread, at most `depth` items ahead. Its exception is raised here, after what came before it."""
    return Prefetched(source, depth)


def _run_ahead(source: Iterable[Any], items: queue.Queue[Any], stopped: threading.Event) -> None:
    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        for item in source:
            if not put((item, None)) or stopped.is_set():
                break
        put((_END, None))
    except BaseException as e:
        put((_END, e))
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def map_in_threads(do: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """`do` of every item, in order, `most` at a time. Daemon threads: one that hangs does not keep the process.

    Raises what `do` raised for the first item for which it did.
    """
    found: dict[int, R] = {}
    errors: dict[int, BaseException] = {}
    numbers = iter(range(len(items)))
    lock = threading.Lock()

    def work() -> None:
        while not errors:
            with lock:
                i = next(numbers, None)
            if i is None:
                return
            try:
                found[i] = do(items[i])
            except BaseException as e:
                errors[i] = e

    threads = [daemon("read", work) for _ in range(min(most, len(items)))]
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [found[i] for i in range(len(items))]


def daemon(name: str, target: Callable[..., None], *given: Any) -> threading.Thread:
    """Start a thread that does not keep the process, should it hang. The process ends in order if it does not."""
    thread = threading.Thread(target=target, args=given, daemon=True, name=name)
    _daemons.add(thread)
    thread.start()
    return thread


@atexit.register
def _end_daemons() -> None:
    """Python's end aborts the process where a thread is in the middle of C++ code, such as torch's."""
    for prefetched in list(_prefetched):
        prefetched.stop()
    until = time.monotonic() + SECONDS_TO_END
    for thread in list(_daemons):
        thread.join(max(0.0, until - time.monotonic()))
