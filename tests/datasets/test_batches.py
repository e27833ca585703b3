"""Reading ahead: order, errors, and an end that waits for nobody."""

from __future__ import annotations

import threading
import time

import pytest
from curate.datasets.batches import map_in_threads, prefetch


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
