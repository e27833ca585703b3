import bz2
import gzip
import io
import lzma
import tarfile

import pyarrow as pa
import pytest
import webdataset as wds
from curate.datasets import tars
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.datasets.targets import hash_target
from curate.errors import ShardError
from hypothesis import given, settings
from hypothesis import strategies as st
from support.readers import CLASSES, read, read_members, reasons
from support.tars import write_tar


def by_webdataset(path, image, target):
    """(key, image, target) of every sample as webdataset's own reader gives it."""
    samples = wds.WebDataset(str(path), shardshuffle=False)
    return [(s["__key__"], s.get(image), s.get(target)) for s in samples]


def test_a_real_shard_reads_as_webdataset_reads_it(digits):
    spec = digits.dataset()
    for shard in list_shards(spec):
        ours = list(read_shard(spec, shard))
        theirs = by_webdataset(shard.url, "png", "cls")
        assert [(e.key, e.image, e.target, e.target_hash) for e in ours] == [
            (key, image, int(cls), hash_target(cls)) for key, image, cls in theirs
        ]
        assert [e.row for e in ours] == list(range(150))
        assert {e.shard for e in ours} == {shard.name}


def test_the_key_ends_at_the_first_dot_of_the_base_name(tmp_path):
    members = [
        ("a.b/c/one.png", b"1"),
        ("a.b/c/one.cls", b"0"),
        ("a.b/c/one.two.png", b"2"),
        ("v1.5.png", b"3"),
        ("v1.5.cls", b"1"),
        ("deep/er/x.PNG", b"4"),
        ("deep/er/x.Cls", b"2"),
    ]
    records = read_members(tmp_path, *members, image=["png", "5.png"], label="cls")
    assert [(r.key, r.row) for r in records] == [("a.b/c/one", 0), ("v1", 1), ("deep/er/x", 2)]
    assert [key for key, _, _ in by_webdataset(tmp_path / "0.tar", "png", "cls")] == [r.key for r in records]
    assert records[0].image == b"1"
    assert records[2].target == 2
    assert reasons(records) == [(1, "v1", "target", "no label (cls)")]


@pytest.mark.parametrize("name", ["__meta__/x.png", "__x__/a/x.png"])
def test_webdatasets_own_metadata_is_no_example(tmp_path, name):
    members = [(name, b"x"), ("a.png", b"1"), ("a.cls", b"0")]
    records = read_members(tmp_path, *members)
    assert [key for key, _, _ in by_webdataset(tmp_path / "0.tar", "png", "cls")] == ["a"]
    assert [r.key for r in records] == ["a"]


names = st.from_regex(r"([a-c]{1,2}(\.[a-c])?/){0,2}[a-d]{1,2}(\.[a-b])?\.(png|PNG|cls|txt|jpg|json)", fullmatch=True)
content = st.binary(min_size=0, max_size=700)


@given(st.lists(st.tuples(names, content), min_size=1, max_size=12, unique_by=lambda m: m[0].lower()))
@settings(max_examples=80, deadline=None)
def test_any_tar_reads_as_webdataset_reads_it_or_is_refused(tmp_path_factory, members):
    path = write_tar(tmp_path_factory.getbasetemp() / "hypothesis" / "0.tar", members)
    theirs = by_webdataset(path, "png", "txt")
    twice = len({key for key, _, _ in theirs}) < len(theirs)
    spec = spec_from_table("d", {"train": str(path), "image": "png", "text": "txt"})
    (shard,) = list_shards(spec)
    try:
        ours = list(read_shard(spec, shard))
    except ShardError as e:
        assert twice
        assert "occurs twice" in str(e)
        return
    assert not twice
    assert [(r.row, r.key) for r in ours] == [(row, key) for row, (key, _, _) in enumerate(theirs)]
    for record, (_, image, text) in zip(ours, theirs, strict=True):
        good = bool(image) and bool(text) and readable(text)
        assert isinstance(record, Example) == good
        if good:
            assert (record.image, record.target, record.target_hash) == (
                image,
                text.decode().strip(),
                hash_target(text),
            )


def readable(text):
    try:
        return bool(text.decode().strip())
    except UnicodeDecodeError:
        return False


def outcome(path):
    """How many records came, and whether the shard was refused; anything else escapes."""
    spec = spec_from_table("d", {"train": str(path), "classes": CLASSES})
    (shard,) = list_shards(spec)
    count = 0
    try:
        for record in read_shard(spec, shard):
            count += isinstance(record, Example)
    except ShardError as e:
        assert str(path) in str(e)
        return count, True
    return count, False


def cut_members(n=5):
    return [m for i in range(n) for m in ((f"{i}.png", bytes([i + 1]) * (300 + 200 * i)), (f"{i}.cls", b"1"))]


def test_a_tar_cut_at_any_byte_is_refused(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", cut_members()).read_bytes()
    assert outcome(tmp_path / "whole.tar") == (5, False)
    with tarfile.open(tmp_path / "whole.tar") as tar:
        starts = [m.offset for m in tar] + [m.offset_data for m in tar]
        end = max(m.offset_data + 512 * -(-m.size // 512) for m in tar)
    path = tmp_path / "cut.tar"
    cuts = {0, 1, 511, end, end + 1, end + 511, end + 512, end + 513, end + 1023, *starts, *range(7, end, 97)}
    cuts |= {start + step for start in starts for step in (-1, 1)} - {-1}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        count, refused = outcome(path)
        assert refused, f"cut at byte {cut} of {len(whole)}: {count} records and no error"
    path.write_bytes(whole[: end + 1024])  # the mark itself is whole; what follows is only tar's blocking
    assert outcome(path) == (5, False)


def test_a_compressed_tar_cut_anywhere_is_refused(tmp_path):
    # Level 0 stores: a cut compressed file then ends anywhere in the plain one, at members' edges too.
    raw = write_tar(tmp_path / "whole.tar", cut_members()).read_bytes()
    for level in (0, 6):
        whole = gzip.compress(raw, level)
        path = tmp_path / "cut.tar.gz"
        path.write_bytes(whole)
        assert outcome(path) == (5, False)
        step = max(1, len(whole) // 150)
        for cut in sorted({*range(0, len(whole), step), *range(len(whole) - 9, len(whole))}):
            path.write_bytes(whole[:cut])
            count, refused = outcome(path)
            assert refused, f"level {level}, cut at byte {cut} of {len(whole)}: {count} records and no error"


@pytest.mark.parametrize("how", ["flipped", "zeroed"])
def test_a_header_damaged_in_the_middle_is_refused(tmp_path, how):
    path = write_tar(tmp_path / "0.tar", cut_members())
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        starts = [m.offset for m in tar]
    for start in starts:
        damaged = bytearray(data)
        damaged[start : start + 512] = (
            bytes(512) if how == "zeroed" else bytes(b ^ 0x5A for b in data[start : start + 512])
        )
        path.write_bytes(damaged)
        count, refused = outcome(path)
        assert refused, f"header at {start} {how}: {count} records and no error"


def test_two_tars_put_together_are_refused_not_read_by_half(tmp_path):
    one = write_tar(tmp_path / "1.tar", [("a.png", b"1"), ("a.cls", b"0")]).read_bytes()
    two = write_tar(tmp_path / "2.tar", [("b.png", b"1"), ("b.cls", b"0")]).read_bytes()
    (tmp_path / "0.tar").write_bytes(one + two)
    assert outcome(tmp_path / "0.tar")[1]


@pytest.mark.parametrize("noise", [b"", b"not a tar at all" * 100, bytes(10240)])
def test_what_is_no_tar_is_refused_or_empty(tmp_path, noise):
    path = tmp_path / "0.tar"
    path.write_bytes(noise)
    if noise == bytes(10240):  # what `tar` writes for no files
        assert outcome(path) == (0, False)
    else:
        assert outcome(path) == (0, True)


def test_folders_and_names_without_an_ending_are_no_examples(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("x.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in (("README", b"words"), ("a.png", b"1"), ("a.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [(r.key, r.row) for r in read(path)] == [("a", 0)]


def test_long_and_foreign_names_survive(tmp_path):
    key = "ordner/" + "ä" * 150
    (record,) = read_members(tmp_path, (f"{key}.png", b"1"), (f"{key}.cls", b"0"))
    assert record.key == key


def test_a_name_that_is_not_utf_8_gives_a_key_that_can_be_stored(tmp_path):
    records = read_members(tmp_path, ("\udcff.png", b"1"), ("\udcff.cls", b"0"), ("b.png", b"1"), ("b.cls", b"0"))
    assert [(r.key, r.image) for r in records] == [("\\udcff", b"1"), ("b", b"1")]
    assert pa.array([r.key for r in records]).to_pylist() == ["\\udcff", "b"]


def test_an_error_is_one_line_whatever_the_names(tmp_path):
    with pytest.raises(ShardError) as caught:
        read_members(tmp_path, ("a\n\udcff.png", b"1"), ("a\n\udcff.PNG", b"2"))
    assert str(caught.value).isprintable()
    assert "occurs twice" in str(caught.value)


def test_a_sparse_member_is_refused_before_its_zeros_are_made(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 3
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,3"}
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"123"))
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert tar.getmembers()[0].size == 1 << 40
    with pytest.raises(ShardError, match=r"'a\.png' is a sparse file"):
        read(tmp_path / "0.tar")


def test_a_key_that_comes_back_is_refused(tmp_path):
    with pytest.raises(ShardError, match=r"0\.tar: key 'a' occurs twice"):
        read_members(tmp_path, ("a.png", b"1"), ("a.cls", b"0"), ("b.png", b"1"), ("b.cls", b"0"), ("a.jpg", b"1"))


def test_one_ending_twice_in_a_key_is_refused(tmp_path):
    with pytest.raises(ShardError, match=r"'a\.PNG' occurs twice"):
        read_members(tmp_path, ("a.png", b"1"), ("a.PNG", b"2"), ("a.cls", b"0"))


def test_reading_a_member_needs_no_memory_of_those_before(tmp_path):
    """tarfile keeps every header it saw unless told not to; a shard of any size must stay small."""
    import tracemalloc

    path = write_tar(tmp_path / "0.tar", [m for i in range(3000) for m in ((f"{i}.png", b"1"), (f"{i}.cls", b"1"))])
    spec = spec_from_table("d", {"train": str(path), "classes": CLASSES})
    (shard,) = list_shards(spec)
    tracemalloc.start()
    try:
        assert sum(isinstance(r, Example) for r in read_shard(spec, shard)) == 3000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000, f"{peak:,} bytes for 6,000 members; headers alone would be some 6 MB"


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


@pytest.mark.parametrize(
    ("name", "packed", "told"),
    [
        ("0.tar", gzip.compress, "is compressed with gzip, which its name does not say; name it .tar.gz"),
        ("0.tar", bz2.compress, "is compressed with bzip2, no tar that is read here; pack it as .tar or .tar.gz"),
        ("0.tar.gz", lzma.compress, "is compressed with xz, no tar"),
        ("0.tgz", bytes, "is not compressed with gzip, as its name says; if it is a tar, name it .tar"),
        ("0.tgz", lambda raw: gzip.compress(raw)[:-9], "the tar is cut or damaged"),
        ("0.tar", lambda raw: b"x" + raw, "the tar is cut or damaged at its beginning"),
    ],
)
def test_a_tar_whose_ending_is_anothers_is_told_its_name(tmp_path, name, packed, told):
    plain = write_tar(tmp_path / "plain.tar", [("a.png", b"1"), ("a.cls", b"0")]).read_bytes()
    (tmp_path / name).write_bytes(packed(plain))
    with pytest.raises(ShardError, match=told):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["0.TAR", "0.Tgz", "0.TAR.GZ"])
@pytest.mark.parametrize("named", ["{file}", "{folder}", "{folder}/*."])
def test_endings_in_capital_letters_are_those_in_small_ones(tmp_path, name, named):
    plain = write_tar(tmp_path / "plain.tar", [("a.png", b"1"), ("a.cls", b"0")]).read_bytes()
    file = tmp_path / "data" / name
    file.parent.mkdir()
    file.write_bytes(plain if name.endswith("TAR") else gzip.compress(plain))
    train = named.format(file=file, folder=file.parent)
    if named.endswith("*."):
        train += name.partition(".")[2]
    spec = spec_from_table("d", {"train": train, "label": "cls", "classes": ["a"]})
    (shard,) = list_shards(spec)
    assert [(example.key, example.target) for example in read_shard(spec, shard)] == [("a", 0)]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "0.tar", "w", format=kind) as tar:
        info = tarfile.TarInfo("a" * (2 << 20) + ".png")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(ShardError, match=r"0\.tar: the tar is cut or damaged .*a header of 2,097,"):
        read(tmp_path / "0.tar")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_an_example_that_is_a_link_is_a_bad_example_and_not_left_out(tmp_path, kind):
    """GNU tar makes a hard link of a file that it has packed under another name."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as out:
        for name, content in (("a.png", b"1"), ("a.cls", b"0"), ("b.png", None), ("b.cls", None), ("c.png", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            if content is None:
                info.type, info.linkname = kind, name.replace("b", "a")
            out.addfile(info, io.BytesIO(content or b""))
        for name, of in (("c.cls", "a.cls"), ("c.json", "a.json")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, of
            out.addfile(info)
    records = read(path)
    told = "is a link, which is not followed; pack it with tar --dereference --hard-dereference"
    assert [r.key for r in records] == ["a", "b", "c"]
    assert reasons(records) == [(1, "b", "read", f"b.png {told}"), (2, "c", "target", f"c.cls {told}")]
