"""Memory that processes share: used again when nobody holds it, never before; rows put in order where they lie."""

import numpy as np
import pytest
from curate.datasets import slabs as module
from curate.datasets.slabs import Slabs, opened, rows_together
from hypothesis import given
from hypothesis import strategies as st


def test_a_slab_is_used_again_once_neither_array_nor_view_is_left():
    slabs = Slabs()
    array, name = slabs.take((4, 1000))
    row = list(array)[2]
    del array
    other, other_name = slabs.take((4, 1000))
    assert other_name != name and slabs.held == 2 * 4096
    del row
    again, again_name = slabs.take((4, 900))  # a little smaller will do
    assert again_name == name and slabs.held == 2 * 4096
    assert slabs.has(again.ctypes.data) and not slabs.has(np.empty(9).ctypes.data)
    small, _ = slabs.take((1, 100))
    assert slabs.held == 3 * 4096 and len({a.ctypes.data for a in (other, again, small)}) == 3


def test_what_another_process_opens_is_the_same_memory():
    slabs = Slabs()
    array, name = slabs.take((3, 5000))
    array[:] = 0
    theirs = np.ndarray((3, 5000), np.uint8, opened(name))
    theirs[1] = 7
    assert array.sum() == 7 * 5000 and opened(name) is opened(name)


def test_memory_that_is_not_asked_for_again_is_given_back():
    slabs = Slabs()
    for size in (40, 60):  # the larger one serves for both
        slabs.take((size, 1024))
    assert slabs.held == 60 * 1024
    for power in range(10):
        slabs.take((4**power, 1024))
    assert len(slabs._free) <= module.MOST_FREE
    assert slabs.held == sum(slab.size for slab in slabs._free) + 4**9 * 1024
    held, _ = slabs.take((1, 1024))
    held[:] = 1  # as before: closing what was free took nothing from what is in use
    assert held.sum() == 1024


def test_without_memory_files_there_are_files_that_are_removed(monkeypatch, tmp_path):
    monkeypatch.delattr(module.os, "memfd_create", raising=False)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    slabs = Slabs()
    array, name = slabs.take((2, 5000))
    array[:] = 3
    assert np.ndarray((2, 5000), np.uint8, opened(name)).sum() == 30_000
    assert len([*tmp_path.iterdir()]) == 1
    del array
    slabs.take((2, 7000))  # serves in its place
    assert len([*tmp_path.iterdir()]) == 1


class Unfinished:
    """A GPU that pins what it can, and has copied when `done` is set."""

    def __init__(self, pins):
        self.pins, self.done, self.pinned = pins, False, []

    def pin(self, address, size):
        self.pinned += [address] if self.pins else []
        return self.pins

    def unpin(self, address):
        self.pinned.remove(address)

    def mark(self):
        return self

    def query(self):
        return self.done


@pytest.mark.parametrize("pins", [True, False])
def test_pinned_memory_is_not_written_to_before_it_was_copied(pins):
    gpu = Unfinished(pins)
    slabs = Slabs(gpu)
    first = slabs.take((4, 1024))[1]
    second = slabs.take((4, 1024))[1]
    assert (second != first) == pins  # without pinning a copy is over when it returns
    gpu.done = True
    assert slabs.take((4, 1024))[1] == first
    slabs.take((5, 1024))
    assert len(gpu.pinned) == pins


@given(
    failed=st.sets(st.integers(0, 11), max_size=6),
    lanes=st.sampled_from([1, 3, 4, 12]),
    shape=st.sampled_from([(7,), (2, 3)]),
)
def test_rows_in_order_stay_where_they_are(failed, lanes, shape):
    """The rows of a super-batch whose bad examples are replaced within their lane."""
    array, _ = Slabs().take((12, *shape))
    array[:] = np.random.default_rng(0).integers(0, 255, array.shape, dtype=np.uint8)
    more = [np.full(shape, 100 + i, np.uint8) for i in range(len(failed))]
    rows = []
    for lane in np.arange(12).reshape(lanes, -1).tolist():
        good = [array[i] for i in lane if i not in failed]
        rows += good + [more.pop() for _ in range(len(lane) - len(good))]
    expected, start = np.stack(rows), array.ctypes.data
    together = rows_together(rows, move=False)
    assert (together is None) == bool(failed)
    together = rows_together(rows, move=True)
    assert np.array_equal(together, expected)
    assert together.ctypes.data == start


def test_rows_in_another_order_and_of_other_arrays_are_left_alone():
    array, _ = Slabs().take((3, 4))
    array[:] = np.arange(12).reshape(3, 4)
    for rows in ([array[1], array[0], array[2]], [array[0], array[1]], [*np.ones((3, 4), np.uint8)]):
        assert rows_together(rows, move=True) is None
    assert np.array_equal(array, np.arange(12).reshape(3, 4))
