"""Who decodes images: threads of this process, or processes of their own.

Pillow decodes outside the interpreter's lock, but opening an image, taking its pixels and resizing it need the lock, so that
threads of one process keep about two cores busy: with 16 threads on 16 cores 1,040 images/s of 256 pixels a side, with one
thread 760. Processes are not bound by each other. They get the bytes of a few images at a time, and write pixels into
shared memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np

from ..errors import CurateError, ExampleError
from ..threads import cores
from .batches import batched, decode_all, decode_threads
from .decoding import Geometry, View, decode
from .notices import say_once
from .readers import Example, Failure

# Images that a process is given at a time, and how many such parts wait for each process beside the one in its hands.
PART, WAITING = 8, 1
# Up to so many cores, threads do as well, and need no memory and no seconds to start; so they do for images below this side.
FEW_CORES, SMALL_SIDE = 4, 96
# A process takes about 0.3 GB, and the one that they work for cannot use the images of more.
MOST_PROCESSES = 32


def default_processes(views: Iterable[View], own_cores: int | None = None) -> int:
    """0 where this process has few cores, and where images are small, since handing them over would cost more than decoding
    them; else one for each core beside the one that trains. Its cores are all that it may use, or `own_cores` of them."""
    large = any(isinstance(view, Geometry) and view.size >= SMALL_SIDE for view in views)
    count = cores() if own_cores is None else own_cores
    return min(MOST_PROCESSES, count - 1) if large and count > FEW_CORES else 0


class Decoders:
    """Decodes for one stream of super-batches. `processes` is 0 for threads; a view that is a function is always seen by
    threads. Processes start when they are first needed, and end with this object or with the process. `way_out` is what to do
    where one is killed."""

    def __init__(
        self, processes: int, views: Iterable[View], way_out: str = "--decode-processes 0 decodes in threads"
    ) -> None:
        self._processes, self._way_out = processes, way_out
        # What is made late is waited for: it must not stand behind all that is made ahead.
        self._threads = [ThreadPoolExecutor(decode_threads()) for _ in range(2)]
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._block = PART * max((3 * v.size * v.size for v in views if isinstance(v, Geometry)), default=0)
        self._window = (1 + WAITING) * processes

    def look(self, examples: Sequence[Example], view: View, *, late: bool = False) -> list[Any]:
        """What the view makes of every example (pixels uint8 [size, size, 3] for a geometry), or the Failure, in order.

        Raises CurateError where a process ends that should not.
        """
        if not examples:
            return []
        if not self._processes or not isinstance(view, Geometry):
            return decode_all(examples, view, self._threads[late])
        try:
            return list(self._from_processes(examples, view))
        except BrokenProcessPool as e:
            raise CurateError(
                "a process that decodes images ended before its time: killed, perhaps for want of memory, or started by a "
                f"script whose own code is not under `if __name__ == '__main__':`; {self._way_out}"
            ) from e

    def _from_processes(self, examples: Sequence[Example], view: Geometry) -> Iterator[Any]:
        pool = self._started()
        pending: deque[tuple[Sequence[Example], int, Future[Any]]] = deque()
        try:
            for part in batched(examples, PART):
                while len(pending) >= self._window:
                    yield from self._finished(pending, view)
                with self._lock:
                    block = self._free.pop()
                images = [bytes(example.image) for example in part]
                pending.append((part, block, pool.submit(_decode_part, images, view, block * self._block)))
            while pending:
                yield from self._finished(pending, view)
        finally:
            for _, block, future in pending:  # a block is used again when nobody writes into it
                future.cancel()
                future.add_done_callback(lambda _, block=block: self._free.append(block))  # type: ignore[misc]

    def _finished(self, pending: deque[tuple[Sequence[Example], int, Future[Any]]], view: Geometry) -> list[Any]:
        part, block, future = pending[0]
        failed, told = future.result()
        pending.popleft()
        for message in told:
            say_once(message, message)
        pixels = _pixels(self._shared, block * self._block, len(part), view)
        found = [
            Failure(example.shard, example.row, example.key, *failed[i]) if i in failed else pixels[i].copy()
            for i, example in enumerate(part)
        ]
        self._free.append(block)
        return found

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                context = get_context("spawn")
                # Twice a window: for what is made ahead, and for what is made late meanwhile; and again for a stream that
                # was closed and has not ended yet.
                blocks = 4 * self._window
                self._shared = context.RawArray(ctypes.c_uint8, blocks * self._block)
                self._free = list(range(blocks))
                self._pool = ProcessPoolExecutor(self._processes, context, initializer=_begin, initargs=(self._shared,))
            return self._pool


def _pixels(shared: Any, offset: int, count: int, view: Geometry) -> np.ndarray:
    shape = (count, view.size, view.size, 3)
    found: np.ndarray = np.frombuffer(shared, np.uint8, int(np.prod(shape)), offset).reshape(shape)
    return found


_shared: Any = None


def _begin(shared: Any) -> None:
    """In a new process: end with the parent, whatever ends it, and leave Ctrl-C to it."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # torch is imported by the first image that is resized
    parent = parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True, name="ends with its parent").start()


def _decode_part(images: Sequence[bytes], view: Geometry, offset: int) -> tuple[dict[int, tuple[str, str]], list[str]]:
    """Decode into shared memory. Returns stage and reason of what failed, by its place, and what is to be said."""
    pixels, failed = _pixels(_shared, offset, len(images), view), {}
    with warnings.catch_warnings(record=True) as told:
        for i, image in enumerate(images):
            try:
                pixels[i] = decode(image, view)
            except ExampleError as e:
                failed[i] = (e.stage, e.reason)
    return failed, [str(warning.message) for warning in told if issubclass(warning.category, UserWarning)]
