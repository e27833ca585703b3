import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.landed import landed_files, landed_shards
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.errors import SpecError
from support.folders import touch


def spec_of(folder, train, **table):
    return spec_from_table("d", {"train": train, **table}, base=folder)


@pytest.mark.parametrize(
    "train",
    ["a/{0..3}.tar", "a/*.tar", ["a/?.tar", "b/*.tar"], "{a,b}/*.tar", "*/{0,1,2,3}.tar", "a/{0..1}.tar::b/{0..1}.tar"],
)
def test_what_is_all_there_is_what_list_shards_lists(tmp_path, train):
    touch(tmp_path, "a/0.tar", "a/1.tar", "a/2.tar", "a/3.tar", "a/x.txt", "b/0.tar", "b/1.tar")
    spec = spec_of(tmp_path, train)
    assert landed_shards(spec) == list_shards(spec)


def test_shards_that_are_not_there_yet_are_no_error(tmp_path):
    spec = spec_of(tmp_path, "inbox/{00..20}.tar")
    assert landed_files(spec) == []
    touch(tmp_path, "inbox/03.tar", "inbox/11.tar")
    assert [file.shard.name for file in landed_files(spec)] == ["03", "11"]
    assert landed_files(spec_of(tmp_path, "nowhere/*.tar")) == []


def test_a_file_that_is_written_to_is_another_version_of_it(tmp_path):
    spec = spec_of(tmp_path, "*.tar")
    touch(tmp_path, "a.tar")
    (first,) = landed_files(spec)
    assert landed_files(spec) == [first]
    touch(tmp_path, "a.tar", size=4)
    (longer,) = landed_files(spec)
    touch(tmp_path, "a.tar", size=4)
    os.utime(tmp_path / "a.tar", (0, 0))
    (touched,) = landed_files(spec)
    assert len({first.version, longer.version, touched.version}) == 3
    assert first.shard.name == longer.shard.name == touched.shard.name == "a"


def test_a_big_parquet_file_is_several_shards_and_one_while_it_is_not_whole(tmp_path):
    table = pa.table({"image": [b"x"] * 40, "label": list(range(40))})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=10)
    spec = spec_of(tmp_path, "*.parquet", rows_per_shard=20, classes=40)
    assert [s.name for s in landed_shards(spec)] == ["big.rg00000-00002", "big.rg00002-00004"]
    assert landed_shards(spec) == list_shards(spec)
    whole = (tmp_path / "big.parquet").read_bytes()
    (tmp_path / "big.parquet").write_bytes(whole[:-10])
    (part,) = landed_shards(spec)
    assert (part.name, part.size) == ("big", len(whole) - 10)


def test_other_filesystems(tmp_path):
    fs = fsspec.filesystem("memory")
    try:
        fs.pipe_file("/landing/0.tar", b"abc")
        for train in ("memory://landing/*.tar", "memory://landing/{0..5}.tar"):
            spec = spec_of(tmp_path, train)
            (shard,) = landed_shards(spec)
            assert (shard.name, shard.size) == ("0", 3)
            assert fsspec.open(shard.url).open().read() == b"abc"
    finally:
        fs.rm("/landing", recursive=True)


def test_a_folder_of_pictures_cannot_be_followed(tmp_path):
    touch(tmp_path, "pictures/cat/1.jpg")
    with pytest.raises(SpecError, match=r"folder of images.*only \.tar and \.parquet shards can be followed"):
        landed_files(spec_of(tmp_path, "pictures", classes=["cat"]))
