"""From a stream of undecoded examples to decoded batches, read and decoded ahead in threads."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ..errors import ExampleError
from ..threads import cores
from .decoding import Geometry, View, look
from .readers import Example, Failure

T = TypeVar("T")
_END = object()


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


def decoded_batches(
    records: Iterable[Example | Failure], geometry: Geometry, batch_size: int, threads: int | None = None
) -> Iterator[DecodedBatch]:
    """Decode a shard's records, `batch_size` at a time, in order. Bad images become failures of stage `decode`."""
    with ThreadPoolExecutor(threads or decode_threads()) as pool:
        chunks = batched_with_seconds(records, batch_size)
        for chunk, read_seconds in chunks:
            started = time.perf_counter()
            failures = [r for r in chunk if isinstance(r, Failure)]
            examples = [r for r in chunk if isinstance(r, Example)]
            decoded = decode_all(examples, geometry, pool)
            kept = [(e, p) for e, p in zip(examples, decoded, strict=True) if isinstance(p, np.ndarray)]
            failures += [p for p in decoded if isinstance(p, Failure)]
            pixels = (
                np.stack([p for _, p in kept])
                if kept
                else np.empty((0, geometry.size, geometry.size, 3), dtype=np.uint8)
            )
            seconds = {"read": read_seconds, "decode": time.perf_counter() - started}
            yield DecodedBatch([e for e, _ in kept], pixels, failures, seconds)


def decode_all(examples: Sequence[Example], view: View, pool: Executor) -> list[Any]:
    """What the view makes of every example (pixels uint8 [size, size, 3] for a geometry), or the Failure, in order."""
    # Handing over a single image would cost more than decoding a small one.
    parts = list(batched(examples, 32))
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


def prefetch(source: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Run `source` in a thread, at most `depth` items ahead. Its exception is raised here, after what came before it.

    Closing the generator stops the thread.
    """
    items: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in source:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as e:
            put((_END, e))

    thread = threading.Thread(target=run, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = items.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
