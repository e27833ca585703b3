"""Windows are read ahead within the bytes that are allowed, and nothing else depends on it."""

from __future__ import annotations

import threading
import time
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from curate import Geometry, SuperBatches
from curate.datasets import readers
from curate.datasets.preparers.writer import encode_png
from curate.datasets.spec import spec_from_table
from curate.training import loading
from curate.training.ahead import HostRoom, ReadAhead
from support.tars import write_tar

SHARDS, PER_SHARD = 24, 16


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """Noise that does not compress: 24 shards of 16 images of 27 kB."""
    folder = tmp_path_factory.mktemp("heavy")
    generator = np.random.default_rng(0)
    for shard in range(SHARDS):
        pixels = generator.integers(0, 255, (PER_SHARD, 96, 96, 3), dtype=np.uint8)
        members = [(f"{i:02d}.png", encode_png(image)) for i, image in enumerate(pixels)]
        write_tar(folder / f"{shard:02d}.tar", [m for i in members for m in (i, (f"{i[0][:2]}.cls", b"1"))])
    return spec_from_table("heavy", {"train": f"{folder}/*.tar", "task": "classification", "classes": 10})


def stream(spec, size=16, **options):
    return SuperBatches(spec, size, views={"v": Geometry(size=8)}, lanes=4, cache_bytes=0, **options)


def keys(batches, count):
    found = [list(zip(batch.shards, batch.keys, strict=True)) for batch in islice(batches, count)]
    batches.close()
    return found


def test_memory_stays_within_host_bytes(heavy):
    allowed = 5 << 20  # two shards a lane, of eleven megabytes in all
    batches = stream(heavy, host_bytes=allowed)
    assert not batches.loader.keeps_all
    source = iter(batches)
    next(source)
    tracemalloc.start()
    try:
        for _ in islice(source, 24):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        batches.close()
    assert peak < allowed + (1 << 20)  # what is read of a tar at a time, and the rows' own objects


def test_the_next_window_is_read_while_this_one_is_used(heavy, monkeypatch):
    read = []

    def noted(spec, shard):
        read.append((shard.name, threading.current_thread().name))
        yield from readers.read_shard(spec, shard)

    monkeypatch.setattr(loading, "read_shard", noted)
    roomy, tight = (keys(stream(heavy, host_bytes=size), 24) for size in (6 << 20, 6 << 20))
    assert roomy == tight
    ahead = {name for name, thread in read if thread == "read ahead"}
    assert len(ahead) >= SHARDS // 2  # all but the first windows
    first_epoch = [name for name, _ in read]
    assert len(first_epoch) <= 2 * (SHARDS + SHARDS)  # in two streams: none is read for nothing but by the end


@pytest.mark.parametrize("stop", [1, 9])
def test_what_was_read_ahead_changes_no_resume(heavy, stop):
    whole = keys(stream(heavy, host_bytes=6 << 20), 40)
    batches = stream(heavy, host_bytes=6 << 20)
    assert keys(batches, stop) == whole[:stop]
    resumed = stream(heavy, host_bytes=6 << 20)
    resumed.load_state_dict(batches.state_dict())
    assert keys(resumed, 40 - stop) == whole[stop:]


def test_closing_does_not_wait_for_a_shard_that_hangs(heavy, monkeypatch):
    release = threading.Event()

    def hangs(spec, shard):
        if threading.current_thread().name == "read ahead":
            release.wait(60)
        yield from readers.read_shard(spec, shard)

    monkeypatch.setattr(loading, "read_shard", hangs)
    batches = stream(heavy, host_bytes=6 << 20)
    next(iter(batches))
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 20
    release.set()


def test_what_has_no_room_is_not_begun():
    room = HostRoom(10)
    ahead = ReadAhead(lambda index: index, room)
    begun = [ahead.begin(i, 4) for i in range(3)]
    assert [one.result(10) if one else None for one in begun] == [0, 1, None]
    room.add(-4)
    assert ahead.begin(7, 4).result(10) == 7
    ahead.close()


def test_an_error_is_met_where_the_shard_is_needed():
    def fails(index):
        raise loading.UnreadableError(OSError("gone"))

    begun = ReadAhead(fails, HostRoom(1)).begin(0, 1)
    with pytest.raises(loading.UnreadableError, match="gone"):
        begun.result(10)
