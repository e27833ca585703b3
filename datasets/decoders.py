"""Who decodes images: threads of this process, or processes of their own.

Pillow decodes outside the interpreter's lock, but opening an image, taking its pixels and resizing it need the lock, so that
threads of one process keep about two cores busy: with 16 threads on 16 cores 1,040 images/s of 256 pixels a side, with one
thread 760. Processes are not bound by each other. They get the bytes of a few images at a time, and write pixels to where
they stay: into memory that is shared with them, whose rows a super-batch's tensor keeps. Tokens of captions are made there
too, since Python makes them.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np

from ..errors import CurateError, ExampleError
from ..threads import cores
from .batches import batched, decode_all, decode_threads
from .decoding import Geometry, View, decode
from .notices import say_once
from .readers import Example, Failure
from .slabs import Slabs, opened

# Images, and captions, that a process is given at a time, and how many such parts wait for each process beside the one in
# its hands.
PART, CAPTIONS, WAITING = 8, 256, 1
# Up to so many cores, threads do as well, and need no memory and no seconds to start; so they do for images below this side.
FEW_CORES, SMALL_SIDE = 4, 96
Tokenizer = Callable[[list[str]], Any]
"""Makes tokens of captions: an integer tensor [n, L]."""
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
    threads. Processes start when they are first needed, and end with this object or with the process. They write pixels to
    `slabs`, and make tokens with those of the `tokenizers` that can be sent to them. `way_out` is what to do where one is
    killed."""

    def __init__(
        self,
        processes: int,
        views: Iterable[View] = (),
        tokenizers: Iterable[Tokenizer] = (),
        way_out: str = "--decode-processes 0 decodes in threads",
    ) -> None:
        self.processes, self._way_out = processes, way_out
        # What is made late is waited for: it must not stand behind all that is made ahead.
        self._threads = [ThreadPoolExecutor(decode_threads()) for _ in range(2)]
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._window = (1 + WAITING) * processes
        self.slabs = Slabs()
        self._sent: list[bytes] = []
        self._tokenizers: dict[int, int] = {}  # by id, the place among those sent
        for tokenizer in tokenizers if processes else ():
            if id(tokenizer) not in self._tokenizers:
                with suppress(Exception):  # such as a function that has no name
                    self._sent.append(pickle.dumps(tokenizer))
                    self._tokenizers[id(tokenizer)] = len(self._sent) - 1

    def look(self, examples: Sequence[Example], view: View, *, late: bool = False) -> list[Any]:
        """What the view makes of every example (pixels uint8 [size, size, 3] for a geometry), or the Failure, in order.

        Pixels from processes are rows of one slab, number i for example i: see `slabs.rows_together`. Raises CurateError
        where a process ends that should not.
        """
        if not examples:
            return []
        if not self.processes or not isinstance(view, Geometry):
            return decode_all(examples, view, self._threads[late])
        pixels, slab = self.slabs.take((len(examples), view.size, view.size, 3))
        found: list[Any] = list(pixels)
        parts = [range(i, min(i + PART, len(examples))) for i in range(0, len(examples), PART)]
        tasks = (
            (_decode_part, [bytes(examples[i].image) for i in part], view, slab, part.start * pixels[0].nbytes)
            for part in parts
        )
        with self._named_errors():
            for part, (failed, told) in zip(parts, self._answers(tasks, pixels), strict=True):
                for message in told:
                    say_once(message, message)
                for i, why in failed.items():
                    one = examples[part.start + i]
                    found[part.start + i] = Failure(one.shard, one.row, one.key, *why)
        return found

    def tokens(self, captions: list[str], tokenizer: Tokenizer) -> np.ndarray:
        """int32 [n, L], of at least one caption. Raises what the tokenizer raises."""
        number = self._tokenizers.get(id(tokenizer))
        if number is not None and len(captions) > PART:
            tasks = ((_tokenize_part, number, list(part)) for part in batched(captions, CAPTIONS))
            with self._named_errors():
                found = list(self._answers(tasks))
            lengths = {None if part is None else part.shape[1] for part in found}
            if len(lengths) == 1 and None not in lengths:
                return np.concatenate(found)
            del self._tokenizers[id(tokenizer)]  # a process cannot make it, or not alike
        return _tokens(tokenizer, captions)

    def _answers(self, tasks: Iterable[tuple[Any, ...]], held: object = None) -> Iterator[Any]:
        """What processes answer, in the order of the tasks. What is `held` they may write to until all have ended."""
        pool, pending = self._started(), deque[Future[Any]]()
        try:
            for do, *given in tasks:
                if len(pending) >= self._window:
                    yield pending.popleft().result()
                pending.append(pool.submit(do, *given))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
                future.add_done_callback(lambda _, held=held: None)  # type: ignore[misc]

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as e:
            raise CurateError(
                "a process that decodes images ended before its time: killed, perhaps for want of memory, or started by a "
                f"script whose own code is not under `if __name__ == '__main__':`; {self._way_out}"
            ) from e
        except OSError as e:
            raise CurateError(f"a process that decodes images failed: {e}; {self._way_out}") from e

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                context, sent = get_context("spawn"), (self._sent,)
                self._pool = ProcessPoolExecutor(self.processes, context, initializer=_begin, initargs=sent)
            return self._pool


_tokenizers: list[bytes | Tokenizer] = []


def _begin(tokenizers: list[bytes]) -> None:
    """In a new process: end with the parent, whatever ends it, and leave Ctrl-C to it."""
    _tokenizers[:] = tokenizers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # torch is imported by the first image that is resized
    parent = parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True, name="ends with its parent").start()


def _decode_part(
    images: Sequence[bytes], view: Geometry, slab: tuple[int, str, int], offset: int
) -> tuple[dict[int, tuple[str, str]], list[str]]:
    """Decode into a slab. Returns stage and reason of what failed, by its place, and what is to be said."""
    pixels = np.ndarray((len(images), view.size, view.size, 3), np.uint8, opened(slab), offset)
    failed = {}
    with warnings.catch_warnings(record=True) as told:
        for i, image in enumerate(images):
            try:
                pixels[i] = decode(image, view)
            except ExampleError as e:
                failed[i] = (e.stage, e.reason)
    return failed, [str(warning.message) for warning in told if issubclass(warning.category, UserWarning)]


def _tokens(tokenizer: Tokenizer, captions: list[str]) -> np.ndarray:
    found: np.ndarray = tokenizer(captions).numpy().astype(np.int32)
    return found


def _tokenize_part(number: int, captions: list[str]) -> np.ndarray | None:
    """int32 [n, L]; None where this process cannot make the tokenizer, as one whose module only the parent has."""
    tokenizer = _tokenizers[number]
    if isinstance(tokenizer, bytes):
        try:
            tokenizer = _tokenizers[number] = pickle.loads(tokenizer)
        except Exception:
            return None
    assert not isinstance(tokenizer, bytes)
    return _tokens(tokenizer, captions)
