"""Reading ahead: order, errors, and an end that waits for nobody."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from curate.datasets.batches import decode_all, decoded_batches, map_in_threads, prefetch
from curate.datasets.decoding import Geometry
from curate.datasets.preparers.writer import encode_png
from curate.datasets.readers import Example


def test_items_come_in_order_and_the_error_after_them():
    def source():
        yield from range(5)
        raise ValueError("the sixth")

    found = []
    with pytest.raises(ValueError, match="the sixth"):
        for item in prefetch(source()):
            found.append(item)
    assert found == list(range(5))


def test_closing_does_not_wait_for_a_source_that_hangs():
    release = threading.Event()

    def source():
        yield 1
        release.wait(200)
        yield 2

    ahead = prefetch(source())
    assert next(ahead) == 1
    started = time.monotonic()
    ahead.close()
    assert time.monotonic() - started < 100
    assert list(ahead) == []
    release.set()
    ahead.wait()


def test_closing_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = prefetch(source())
    next(ahead)
    ahead.close()
    assert closed.wait(5)


def test_threads_keep_the_order_and_raise_the_first_error():
    assert map_in_threads(lambda x: x * x, range(20), 3) == [x * x for x in range(20)]
    assert map_in_threads(lambda x: x, [], 3) == []

    def fails(x):
        if x >= 2:
            raise ValueError(f"item {x}")
        return x

    with pytest.raises(ValueError, match="item 2"):
        map_in_threads(fails, range(3), 1)


class Parts(ThreadPoolExecutor):
    """Notes how many examples each thread is handed."""

    def map(self, do, parts):
        self.handed = [len(part) for part in parts]
        return super().map(do, parts)


@pytest.mark.parametrize(
    ("examples", "threads", "handed"),
    [(128, 16, [8] * 16), (512, 16, [32] * 16), (128, 4, [32] * 4), (20, 16, [8, 8, 4]), (30, 2, [15, 15]), (0, 4, [])],
)
def test_every_thread_decodes_a_part_of_a_batch(examples, threads, handed):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    records = [Example("s", i, str(i), encode_png(pixels + np.uint8(i % 200)), 0, 0) for i in range(examples)]
    with Parts(threads) as pool:
        decoded = decode_all(records, Geometry(size=4, resampling="pillow"), pool, threads)
    assert pool.handed == handed
    assert [int(seen[0, 0, 0]) for seen in decoded] == [i % 200 for i in range(examples)]


def test_the_next_batch_is_read_while_one_is_decoded():
    read = threading.Semaphore(0)
    example = Example("s", 0, "0", encode_png(np.zeros((4, 4, 3), dtype=np.uint8)), 0, 0)

    def records():
        for _ in range(3):
            read.release()
            yield example

    batches = decoded_batches(records(), Geometry(size=4), batch_size=1, threads=1)
    next(batches)
    for _ in range(2):  # nobody has asked for the second one
        assert read.acquire(timeout=30)
    batches.close()
