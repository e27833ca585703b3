"""Headers that are read by patterns are what tarfile makes of them; the same tar read by tarfile alone is the proof."""

import io
import re
import tarfile

import pytest
from curate.datasets import tar_headers
from curate.datasets.tar_headers import TarStream, headers
from curate.errors import ShardError
from hypothesis import given, settings
from hypothesis import strategies as st

NEVER = re.compile(rb"(?!)")
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar_bytes(kind="pax", **fields):
    """A tar of members of many sizes and names; `fields` are set on each of them."""
    buffer = io.BytesIO()
    names = ["a.png", "a.cls", "b/c.d.png", "f" * 99 + ".png", "f" * 96 + ".png", "ä.cls", "é" * 60 + ".txt", "_/x"]
    if kind == "ustar":
        names = [name for name in names if len(name.encode()) <= 100]
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as tar:
        for i, name in enumerate([*names, *(f"{n}.cls" for n in range(20))]):
            info = tarfile.TarInfo(name)
            info.size = [0, 1, 511, 512, 513, 5000][i % 6]
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
    return buffer.getvalue()


def read(data, limit=None):
    """What is found, with each file's content, and the error that ended it."""
    stream, found = TarStream(io.BytesIO(data), "x.tar", limit), []
    try:
        for header in headers(stream):
            found.append((*header, stream.read(header.size) if header.is_file and len(found) % 3 else b""))
    except tarfile.TarError as e:
        return found, str(e)
    return found, None


def by_tarfile(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_headers, "ORDINARY", NEVER)
        return read(data)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mtime": 0.0},
        {"mtime": 1700000000.25, "uname": "curate", "uid": 1000},
        {"mtime": -1},
        {"uid": 1 << 40},
        {"type": tarfile.AREGTYPE},
        {"type": tarfile.CONTTYPE},
        {"pax_headers": {"comment": "x", "atime": "1.5"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_member_is_what_tarfile_finds(kind, fields):
    data = tar_bytes(kind, **fields) if kind != "ustar" or fields not in ({"uid": 1 << 40}, {"mtime": -1}) else b""
    found, error = read(data)
    assert (found, error) == by_tarfile(data)
    if data:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert [h[:3] for h in found] == [(m.name, m.size, m.offset_data) for m in tar]


def test_a_global_extension_holds_for_all_that_follow():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"size": "3"}) as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
    found, _ = read(buffer.getvalue())
    assert [h[:2] for h in found] == [("a.png", 3), ("b.png", 3)]


@pytest.mark.parametrize("mtime", [0, 0.0])
def test_ordinary_headers_do_not_go_through_tarfile(monkeypatch, mtime):
    seen = []
    parse = tarfile.TarInfo.frombuf.__func__
    monkeypatch.setattr(tarfile.TarInfo, "frombuf", classmethod(lambda cls, *a: seen.append(1) or parse(cls, *a)))
    data = tar_bytes("ustar" if mtime == 0 else "pax", mtime=mtime)
    del seen[:]
    assert len(read(data)[0]) > 20
    assert len(seen) <= 14, "the first, those with an extension, and the end"


def header_starts(data):
    """Where every header of 512 bytes begins, extensions too."""
    starts, at = [], 0
    while data[at : at + 512].strip(b"\0"):
        starts.append(at)
        at += 512 + -(-int(data[at + 124 : at + 135] or b"0", 8) // 512) * 512
    return starts


SAMPLES = [tar_bytes("ustar"), tar_bytes("gnu"), tar_bytes("pax", mtime=0.0)]


@given(st.sampled_from(SAMPLES), st.integers(0, 60), st.integers(0, 1023), st.integers(0, 255), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_judged_as_tarfile_judges_it(data, number, offset, value, is_mended):
    starts = header_starts(data)
    start = starts[number % len(starts)]
    changed = bytearray(data)
    changed[start + offset] = value
    if is_mended:  # a checksum that is right: only the fields themselves can be wrong
        block = changed[start : start + 148] + b" " * 8 + changed[start + 156 : start + 512]
        changed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    assert read(bytes(changed)) == by_tarfile(bytes(changed))


@given(st.sampled_from(SAMPLES), st.integers(0, 1 << 20))
@settings(max_examples=100, deadline=None)
def test_a_cut_is_found_as_tarfile_finds_it(data, cut):
    cut %= len(data)
    found, error = read(data[:cut])
    assert (found, error is None) == (by_tarfile(data[:cut])[0], by_tarfile(data[:cut])[1] is None)


def test_a_stream_is_read_in_chunks_and_bounded(monkeypatch):
    monkeypatch.setattr(tar_headers, "CHUNK", 700)
    data = tar_bytes(mtime=0.0)
    assert read(data) == by_tarfile(data)
    with pytest.raises(ShardError, match=r"x\.tar: unpacks to more than 5,000 bytes"):
        read(data, limit=5000)
