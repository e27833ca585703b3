import gzip
import io
import tarfile

import pytest
from curate.datasets import tars
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.errors import ShardError
from support.tars import write_tar


def read(path, **table):
    spec = spec_from_table("d", {"train": str(path), **table})
    return [r for shard in list_shards(spec) for r in read_shard(spec, shard)]


def test_a_member_that_is_too_large_is_a_failure_that_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_IMAGE_BYTES", 1000)
    monkeypatch.setattr(tars, "MAX_TARGET_BYTES", 100)
    monkeypatch.setattr(tars, "MAX_JSON_BYTES", 200)
    members = [("a.png", bytes(1001)), ("a.txt", b"a"), ("b.png", b"1"), ("b.txt", b"b" * 101), ("c.png", b"1")]
    path = write_tar(tmp_path / "0.tar", [*members, ("c.txt", b"c" * 100), ("c.json", b" " * 201)])
    reasons = [r.target if isinstance(r, Example) else f"{r.stage}: {r.reason}" for r in read(path, text="txt")]
    assert reasons == [
        "read: a.png has 1,001 bytes, at most 1,000 are read",
        "target: b.txt has 101 bytes, at most 100 are read",
        "c" * 100,
    ]
    assert read(path, text="json:x")[2].reason == "c.json has 201 bytes, at most 200 are read"


def test_a_compressed_tar_that_unpacks_to_a_hundred_times_its_size_is_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "FREE_BYTES", 1 << 20)
    plain = write_tar(tmp_path / "0.tar", [("a.png", bytes(3 << 20)), ("a.cls", b"1")]).read_bytes()
    (tmp_path / "1.tar.gz").write_bytes(gzip.compress(plain))
    with pytest.raises(ShardError, match=r"1\.tar\.gz: unpacks to more than 1,048,576 bytes, .* a decompression bomb"):
        read(tmp_path / "1.tar.gz")
    assert len(read(tmp_path / "0.tar")) == 1
    monkeypatch.setattr(tars, "FREE_BYTES", 4 << 20)  # small ones may unpack to anything
    assert len(read(tmp_path / "1.tar.gz")) == 1


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "0.tar", "w", format=kind) as tar:
        info = tarfile.TarInfo("a" * (2 << 20) + ".png")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(ShardError, match=r"0\.tar: the tar is cut or damaged .*a header of 2,097,"):
        read(tmp_path / "0.tar")
