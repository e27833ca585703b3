import errno
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.inference import class_folders
from curate.datasets.landed import landed_files
from curate.datasets.patterns import LISTED_FROM, expand
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import check_there, list_shards
from curate.datasets.spec import spec_from_path, spec_from_table
from curate.errors import ShardError, SpecError
from support.folders import touch
from support.moody import Moody


def shards_of(folder, train, **table):
    return list_shards(spec_from_table("d", {"train": train, **table}, base=folder))


def names_of(folder, train, **table):
    return [shard.name for shard in shards_of(folder, train, **table)]


def test_braces_name_every_shard_in_order_with_its_size(tmp_path):
    touch(tmp_path, "a-00.tar", "a-02.tar")
    touch(tmp_path, "a-01.tar", size=7)
    shards = shards_of(tmp_path, "a-{00..02}.tar")
    assert [(s.name, s.size) for s in shards] == [("a-00", 3), ("a-01", 7), ("a-02", 3)]
    assert shards[1].url == str(tmp_path / "a-01.tar")


def test_globs_lists_and_two_colons_keep_the_order_of_the_patterns(tmp_path):
    touch(tmp_path, "b/3.tar", "b/1.tar", "a/2.tar", "c/0.tar")
    assert names_of(tmp_path, "b/*.tar") == ["1", "3"]
    assert names_of(tmp_path, ["b/*.tar", "a/2.tar"]) == ["1", "3", "2"]
    assert names_of(tmp_path, "c/0.tar::b/{1,3}.tar") == ["0", "1", "3"]
    assert names_of(tmp_path, "{c,b}/*.tar") == ["0", "1", "3"]


def test_a_glob_sees_files_that_came_since_it_last_looked(tmp_path):
    touch(tmp_path, "0.tar")
    assert names_of(tmp_path, "*.tar") == ["0"]
    touch(tmp_path, "1.tar")
    assert names_of(tmp_path, "*.tar") == ["0", "1"]


def test_shards_of_another_file_system_keep_their_protocol():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/test-shards/0.tar", b"12345")
    fs.pipe_file("/test-shards/1.tar", b"1")
    for pattern in ("memory://test-shards/{0..1}.tar", "memory://test-shards/*.tar"):
        shards = list_shards(spec_from_table("d", {"train": pattern}))
        assert [(s.name, s.size) for s in shards] == [("0", 5), ("1", 1)]
        assert all(s.url.startswith("memory://") for s in shards)
        assert fsspec.open(shards[0].url).open().read() == b"12345"


@pytest.mark.parametrize("listing_is_allowed", [True, False])
def test_many_named_files_of_a_store_are_found_by_one_listing(listing_is_allowed, moody, tmp_path):
    numbers = range(2 * LISTED_FROM)
    for i in numbers:
        (tmp_path / f"{i:03d}.tar").write_bytes(bytes(i))
    pattern = f"moody://{tmp_path}/{{000..{numbers[-1]:03d}}}.tar"
    Moody.failures[:] = [] if listing_is_allowed else [errno.EACCES]
    found = expand("d", pattern, "webdataset")
    assert found == [(f"moody://{tmp_path}/{i:03d}.tar", i) for i in numbers]
    assert Moody.calls == ["ls"] + ["info"] * (0 if listing_is_allowed else len(numbers))
    (tmp_path / "007.tar").unlink()
    with pytest.raises(ShardError, match=r"1 of 32 shards are missing, .*/007\.tar"):
        expand("d", pattern, "webdataset")


@pytest.mark.parametrize("pattern", ["none/*.tar", "none.tar", "none-{0..3}.tar"])
def test_a_pattern_that_matches_nothing_is_named(tmp_path, pattern):
    with pytest.raises(ShardError, match=r"data set 'd': no shard matches .*none"):
        shards_of(tmp_path, pattern)


def test_a_number_missing_from_a_range_is_named(tmp_path):
    touch(tmp_path, "0.tar", "1.tar", "3.tar")
    with pytest.raises(ShardError, match=r"1 of 4 shards are missing, .*/2\.tar"):
        shards_of(tmp_path, "{0..3}.tar")


def test_a_missing_number_is_named_where_the_pattern_has_a_glob_too(tmp_path):
    touch(tmp_path, "0-a.tar", "2-a.tar")
    with pytest.raises(ShardError, match=r"no shard matches .*/1-\*\.tar"):
        shards_of(tmp_path, "{0..2}-*.tar")


def test_a_shard_matched_twice_is_refused(tmp_path):
    touch(tmp_path, "0.tar", "1.tar")
    with pytest.raises(ShardError, match=r"/1\.tar is matched twice"):
        shards_of(tmp_path, ["*.tar", "1.tar"])


def test_unbalanced_braces_are_a_spec_error(tmp_path):
    with pytest.raises(SpecError, match="unbalanced braces"):
        shards_of(tmp_path, "{0..3.tar")


def test_a_split_without_patterns_is_a_spec_error(tmp_path):
    with pytest.raises(SpecError, match="'d' has no test shards; set test"):
        list_shards(spec_from_table("d", {"train": "x.tar"}, base=tmp_path), "test")


def test_one_base_name_in_two_folders_gets_two_names(tmp_path):
    touch(tmp_path, "x/a/0.tar", "x/b/0.tar", "x/b/1.tar")
    assert names_of(tmp_path, ["x/a/0.tar", "x/b/{0..1}.tar"]) == ["a--0", "b--0", "b--1"]
    touch(tmp_path, "x/0.tar")
    names = names_of(tmp_path, ["x/0.tar", "x/a/0.tar"])
    assert len(set(names)) == 2


def test_two_endings_of_one_name_are_refused(tmp_path):
    touch(tmp_path, "0.tar", "0.tar.gz")
    with pytest.raises(ShardError, match="would both be shard '0'; rename one"):
        shards_of(tmp_path, ["0.tar", "0.tar.gz"])


def parquet(path, rows, row_group_size):
    table = pa.table({"image": [b"%d" % i for i in range(rows)], "label": [str(i % 3) for i in range(rows)]})
    pq.write_table(table, path, row_group_size=row_group_size)


def test_a_parquet_file_is_cut_into_runs_of_whole_row_groups(tmp_path):
    parquet(tmp_path / "p.parquet", rows=23, row_group_size=4)
    spec = spec_from_table("d", {"train": "p.parquet", "rows_per_shard": 7}, base=tmp_path)
    shards = list_shards(spec)
    assert [s.row_groups for s in shards] == [(0, 2), (2, 4), (4, 6)]
    assert [s.name for s in shards] == ["p.rg00000-00002", "p.rg00002-00004", "p.rg00004-00006"]
    examples = [list(read_shard(spec, shard)) for shard in shards]
    assert [len(part) for part in examples] == [8, 8, 7]
    assert [e.image for part in examples for e in part] == [b"%d" % i for i in range(23)]
    # Without a key column, the key is the row in the file: unique over all of its shards.
    assert [e.key for part in examples for e in part] == [str(i) for i in range(23)]
    assert all(isinstance(e, Example) and e.shard == s.name for s, p in zip(shards, examples, strict=True) for e in p)


def test_a_small_parquet_file_is_one_shard_under_its_own_name(tmp_path):
    parquet(tmp_path / "p.parquet", rows=23, row_group_size=4)
    assert [(s.name, s.row_groups) for s in shards_of(tmp_path, "p.parquet")] == [("p", (0, 6))]


def test_what_is_no_parquet_file_is_named(tmp_path):
    touch(tmp_path, "p.parquet", size=100)
    with pytest.raises(ShardError, match=r"p\.parquet: not a readable Parquet file"):
        shards_of(tmp_path, "p.parquet")


def test_a_folders_buckets_hold_every_picture_once(tmp_path):
    files = [f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(20)]
    touch(tmp_path, *files, "cat/notes.txt")
    shards = shards_of(tmp_path, ".", rows_per_shard=6)
    assert {s.name for s in shards} <= {f"bucket-{i:05d}-of-00004" for i in range(4)}
    members = [m for s in shards for m in s.members]
    assert sorted(members) == sorted(str(tmp_path / f) for f in files)
    assert [s.size for s in shards] == [len(s.members) for s in shards]


@pytest.mark.parametrize("root", ["memory://bytes", ""])
def test_a_shards_bytes_are_what_it_takes_in_memory_in_every_format(tmp_path, root):
    """A window of shards is filled by them; a whole file's size, or a number of files, would fill it wrongly."""
    image, sizes = np.random.default_rng(0), {}
    touch(tmp_path, "0.tar", size=700)
    touch(tmp_path, "1.tar", size=900)
    images = [image.bytes(1000 * (i + 1)) for i in range(6)]
    table, plain = pa.table({"image": images, "label": ["0"] * 6}), {"use_dictionary": False, "write_statistics": False}
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=2, **plain)
    for i in range(40):
        sizes[f"cat/{i}.png"] = i
        touch(tmp_path, f"folder/cat/{i}.png", size=i)
    touch(tmp_path, "folder/cat/1.txt", size=10_000)
    if root:
        fsspec.filesystem("memory").put(f"{tmp_path}/", "/bytes/", recursive=True)
    base = root or str(tmp_path)
    assert [(s.bytes, s.size) for s in shards_of(tmp_path, f"{base}/[01].tar")] == [(700, 700), (900, 900)]
    assert [(s.bytes, s.size) for s in shards_of(tmp_path, f"{base}/{{0..1}}.tar")] == [(700, 700), (900, 900)]
    file_size = (tmp_path / "p.parquet").stat().st_size
    parts = shards_of(tmp_path, f"{base}/p.parquet", rows_per_shard=2)
    assert [s.size for s in parts] == [file_size] * 3
    assert [s.bytes for s in parts] == [pytest.approx(bytes, abs=300) for bytes in (3000, 7000, 11_000)]
    (whole,) = shards_of(tmp_path, f"{base}/p.parquet")
    assert whole.bytes == sum(s.bytes for s in parts)
    buckets = shards_of(tmp_path, f"{base}/folder", rows_per_shard=20)
    assert len(buckets) > 1
    for bucket in buckets:
        assert bucket.bytes == sum(sizes[m.split("/folder/")[1]] for m in bucket.members)
        assert bucket.size == len(bucket.members)


def test_a_folders_buckets_stay_while_it_grows_and_split_when_it_doubles(tmp_path):
    touch(tmp_path, *(f"cat/{i}.png" for i in range(17)))
    before = {m: s.name for s in shards_of(tmp_path, ".", rows_per_shard=8) for m in s.members}
    touch(tmp_path, *(f"cat/{i}.png" for i in range(17, 32)))
    after = {m: s.name for s in shards_of(tmp_path, ".", rows_per_shard=8) for m in s.members}
    assert len(after) == 32
    assert {m: after[m] for m in before} == before
    touch(tmp_path, "cat/32.png")
    doubled = {m: s.name for s in shards_of(tmp_path, ".", rows_per_shard=8) for m in s.members}
    assert all(name.endswith("-of-00008") for name in doubled.values())
    # crc32 mod 8 refines crc32 mod 4: a bucket is split, never mixed.
    assert all(int(doubled[m][7:12]) % 4 == int(after[m][7:12]) for m in after)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ShardError, match="is not a folder"):
        shards_of(tmp_path, "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="no image"):
        shards_of(tmp_path, "empty")
    touch(tmp_path, "a/cat/0.png", "b/cat/0.png")
    with pytest.raises(ShardError, match=r"'cat/0\.png' is in two of the folders"):
        shards_of(tmp_path, ["a", "b"])


def test_a_folders_classes_are_its_sorted_sub_folders(tmp_path):
    touch(tmp_path, "dog/0.png", "cat/0.png", "readme.txt")
    assert class_folders(str(tmp_path)) == ("cat", "dog")
    assert class_folders(str(tmp_path / "none")) == ()


def test_a_first_look_opens_no_file_and_refuses_what_is_not_there(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"damaged")
    check_there(spec_from_path(str(tmp_path / "*.parquet")))
    for pattern in ("b.parquet", "*.tar"):
        with pytest.raises(ShardError, match="no shard matches"):
            check_there(spec_from_path(str(tmp_path / pattern)))


def test_the_test_split_is_listed_by_its_own_patterns(tmp_path):
    touch(tmp_path, "0.tar", "t0.tar")
    spec = spec_from_table("d", {"train": "0.tar", "test": "t{0..0}.tar"}, base=tmp_path)
    assert [s.name for s in list_shards(spec, "test")] == ["t0"]
    assert [s.name for s in list_shards(replace(spec, train=spec.test))] == ["t0"]


@pytest.mark.parametrize("root", ["", "memory://shard-folders"])
def test_a_folder_of_shards_is_all_shards_below_it(tmp_path, root):
    for name in ("label=b/part-0.parquet", "label=a/part-0.parquet"):
        (tmp_path / "p" / name).parent.mkdir(parents=True)
        pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "p" / name)
    touch(tmp_path, "p/_SUCCESS", "p/_temporary/0/part-1.parquet", "p/.part-0.parquet.crc", "t/b/1.tar", "t/a/0.tar")
    if root:
        fsspec.filesystem("memory").put(f"{tmp_path}/", "/shard-folders/", recursive=True)
    base = root or str(tmp_path)
    for train in (f"{base}/p", f"{base}/p/", f"{base}/p/*/*.parquet"):
        spec = spec_from_table("d", {"train": train, "classes": ["a", "b"]})
        assert spec.format == "parquet"
        if "*" not in train:
            shards = list_shards(spec)
            assert [s.name for s in shards] == ["label=a--part-0", "label=b--part-0"]
            assert [r.target for s in shards for r in read_shard(spec, s)] == [0, 1]
            assert [f.shard.name for f in landed_files(spec)] == [s.name for s in shards]
    assert names_of(tmp_path, f"{base}/t") == ["0", "1"]
    assert names_of(tmp_path, [f"{base}/t", f"{base}/p"][:1], format="webdataset") == ["0", "1"]
