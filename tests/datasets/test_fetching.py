"""Files of a store, fetched ahead in parts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from curate.datasets import fetching, storage
from curate.datasets.fetching import AHEAD, FetchedAhead
from curate.datasets.readers import read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.errors import ReadError
from support.tars import write_tar

PART = 100
CONTENT = bytes(range(256)) * 4 + b"the end"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(fetching, "PART", PART)
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))


class Store:
    """Gives a file's bytes, and remembers what was asked for. While it `waits`, nothing is answered."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.asked, self.failures = content, [], []
        self.answers = threading.Event()
        self.answers.set()

    def fetch(self, first: int, end: int) -> bytes:
        self.asked.append(first // PART)
        self.answers.wait(60)
        if self.failures:
            raise self.failures.pop()
        return self.content[first:end]

    def open(self) -> FetchedAhead:
        return FetchedAhead(self.fetch, len(CONTENT))


@pytest.mark.parametrize("size", [1, 7, PART, PART + 1, 3 * PART, 10_000])
def test_what_is_read_in_pieces_is_the_file_and_each_part_is_fetched_once(size):
    store = Store()
    file = store.open()
    pieces = [*iter(lambda: file.read(size), b"")]
    assert b"".join(pieces) == CONTENT and {len(piece) for piece in pieces[:-1]} <= {size}
    assert sorted(store.asked) == list(range(-(-len(CONTENT) // PART)))
    assert file.read(5) == file.read() == b""


def test_reads_from_anywhere_are_those_of_the_file():
    file, random = Store().open(), np.random.default_rng(0)
    for at, size in random.integers(0, len(CONTENT) + 20, (200, 2)).tolist():
        assert file.seek(at) == file.tell() == at
        assert file.read(size) == CONTENT[at : at + size]
    assert file.seek(-7, 2) == len(CONTENT) - 7 and file.read() == b"the end"
    assert file.seek(-3, 1) == len(CONTENT) - 3 and file.read(2) == b"en"


def test_the_next_parts_are_fetched_before_they_are_asked_for_and_no_more_of_them():
    store = Store()
    file = store.open()
    file.read(1)
    assert store.asked == [0]  # whoever looks at the beginning costs one request
    for number in range(1, 6):
        file.seek(number * PART)
        file.read(1)
        held = number, min(number + min(number, AHEAD), (len(CONTENT) - 1) // PART)
        assert set(file._parts) == set(range(held[0], held[1] + 1)) and max(store.asked) <= held[1]
    assert all(len(part.result(60)) == PART for part in file._parts.values())
    assert sorted(store.asked) == list(range(5 + AHEAD + 1))


def test_parts_are_fetched_side_by_side():
    """Each waits until all are asked for: fetched in turn, they would never come."""
    together = threading.Barrier(AHEAD + 1, timeout=60)

    def fetch(first, end):
        together.wait()
        return CONTENT[first:end]

    file = FetchedAhead(fetch, (2 * AHEAD + 1) * PART)
    file.seek(AHEAD * PART)
    assert file.read() == CONTENT[AHEAD * PART : (2 * AHEAD + 1) * PART]


def test_a_part_that_failed_is_fetched_again_and_the_others_are_kept():
    store = Store()
    reader = storage.Reader("store://x", store.open(), lambda: CONTENT)
    found = reader.read(PART)
    store.failures = [ConnectionError("reset")] * 2
    found += b"".join(iter(lambda: reader.read(PART), b""))
    assert found == CONTENT and len(store.asked) == -(-len(CONTENT) // PART) + 2
    store.failures = [ConnectionError("reset")] * 99
    reader.seek(0)
    with pytest.raises(ReadError, match="store://x: cannot be read"):
        reader.read()


def test_a_part_that_is_too_short_is_no_end_of_the_file():
    store = Store(CONTENT[:-3])
    with pytest.raises(OSError, match="got 28 of 31 bytes"):
        store.open().read()


def test_closing_waits_for_nothing():
    store = Store()
    file = store.open()
    file.read(PART + 1)
    store.answers.clear()
    file.seek(5 * PART)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(file.read, 1)
        file.close()
        assert file.closed and not reading.done()
        store.answers.set()
        assert reading.result(60) == CONTENT[5 * PART : 5 * PART + 1]


class Ranges(BaseHTTPRequestHandler):
    """Serves `content`, whole or a range of it."""

    content, asked = b"", ()

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        Ranges.asked.append(self.headers["Range"])
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = self.content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *about):
        pass


def test_a_tar_of_a_store_is_read_as_a_local_one(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PART", 4096)
    members = [m for i in range(30) for m in ((f"{i}.png", bytes([i]) * 700), (f"{i}.cls", b"1"))]
    path = write_tar(tmp_path / "a.tar", members)
    Ranges.content, Ranges.asked = path.read_bytes(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = {}
        for where in (str(path), f"http://127.0.0.1:{server.server_port}/a.tar"):
            spec = spec_from_table("d", {"train": where, "classes": 10})
            (shard,) = list_shards(spec)
            found[where] = list(read_shard(spec, shard))
        server.shutdown()
    local, remote = found.values()
    assert local == remote and len(remote) == 30
    assert len(Ranges.asked) == len(set(Ranges.asked)) == -(-len(Ranges.content) // 4096)
