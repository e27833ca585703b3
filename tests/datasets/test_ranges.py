"""What is read by its place is what a stream of the whole shard gives, in every format and on every kind of storage."""

from __future__ import annotations

import random
import tarfile
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets import ranges
from curate.datasets.ranges import read_images
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.errors import ShardError
from support.tars import write_tar

IMAGES = [np.random.default_rng(i).bytes(300 + 97 * i) for i in range(23)]
LONG = "folder/" * 30


def tar(folder, name="a.tar"):
    keys = [f"k{i:02d}" for i in range(20)] + [f"{LONG}long", "w\u00f6rter", "\u732b/x"]
    members = [m for k, image in zip(keys, IMAGES, strict=True) for m in ((f"{k}.png", image), (f"{k}.cls", b"1"))]
    write_tar(folder / name, members)
    return {"train": name}


def tar_of_gnu(folder):
    tar(folder, "pax.tar")
    with (
        tarfile.open(folder / "pax.tar") as source,
        tarfile.open(folder / "a.tar", "w", format=tarfile.GNU_FORMAT) as made,
    ):
        for member in source:
            made.addfile(member, source.extractfile(member))
    return {"train": "a.tar"}


def parquet(folder, **columns):
    table = pa.table({"image": [{"bytes": image, "path": None} for image in IMAGES], "label": [1] * 23, **columns})
    pq.write_table(table, folder / "a.parquet", row_group_size=4)
    return {"train": "a.parquet", "rows_per_shard": 7}


def parquet_with_keys(folder):
    return {**parquet(folder, id=[f"k{i}" for i in range(23)]), "key": "id"}


def images_in_folders(folder):
    for i, image in enumerate(IMAGES):
        path = folder / "pictures" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return {"train": "pictures"}


FORMATS = [tar, tar_of_gnu, parquet, parquet_with_keys, images_in_folders]


@pytest.mark.parametrize("storage", ["", "memory://ranges", "moody"])
@pytest.mark.parametrize("make", FORMATS)
def test_bytes_by_place_are_bytes_by_stream(make, storage, moody, tmp_path, monkeypatch):
    entry = make(tmp_path)
    base = {"": str(tmp_path), "moody": f"moody://{tmp_path}"}.get(storage, f"{storage}/{make.__name__}")
    if storage.startswith("memory"):
        fsspec.filesystem("memory").put(f"{tmp_path}/", f"{base.removeprefix('memory:/')}/", recursive=True)
    entry = {**entry, "train": f"{base}/{entry['train']}", "classes": 2}
    spec = spec_from_table("d", entry)
    checked = 0
    for gap in (0, ranges.GAP_BYTES):
        monkeypatch.setattr(ranges, "GAP_BYTES", gap)
        for shard in list_shards(spec):
            examples = [e for e in read_shard(spec, shard) if isinstance(e, Example)]
            some = random.Random(gap).choices(examples, k=9)
            found = read_images(spec, shard, [e.key for e in some], [e.place for e in some])
            assert found == [e.image for e in some]
            checked += len(examples)
    assert checked == 2 * len(IMAGES)


def test_a_few_images_cost_a_few_bytes(moody, tmp_path):
    big = [np.random.default_rng(i).bytes(400_000) for i in range(8)]
    write_tar(
        tmp_path / "a.tar", [(f"{i}.{e}", c) for i, image in enumerate(big) for e, c in (("png", image), ("cls", b"1"))]
    )
    spec = spec_from_table("d", {"train": str(tmp_path / "a.tar"), "classes": 2})
    (shard,) = list_shards(spec)
    place = {e.key: e.place for e in read_shard(spec, shard)}
    asked = []
    real = ranges.read_ranges
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "read_ranges", lambda url, spans: asked.extend(spans) or real(url, spans))
        assert read_images(spec, shard, ["6", "2"], [place["6"], place["2"]]) == [big[6], big[2]]
    assert sum(size for _, size in asked) == 2 * (400_000 + tarfile.BLOCKSIZE)


def test_a_shard_that_changed_is_told_by_the_header_or_the_key(tmp_path):
    spec = spec_from_table("d", {**tar(tmp_path), "classes": 2}, base=tmp_path)
    (shard,) = list_shards(spec)
    examples = list(read_shard(spec, shard))
    places = [e.place for e in examples]
    for wrong in [(places[0][0] + 512, places[0][1]), (places[0][0], places[0][1] + 1), places[1], (10**9, 5), (0, 5)]:
        with pytest.raises(ShardError, match=r"a\.tar: has no image of key 'k00' at the place where it was"):
            read_images(spec, shard, ["k00"], [wrong])
    parquet_spec = spec_from_table("d", {**parquet_with_keys(tmp_path), "classes": 2}, base=tmp_path)
    shard = list_shards(parquet_spec)[0]
    for wrong in [(0, 1), (99, 0), (0, 99)]:
        with pytest.raises(ShardError, match=r"a\.parquet: has no image of key 'k0' at the place"):
            read_images(parquet_spec, shard, ["k0"], [wrong])


def test_a_compressed_tar_has_no_places(tmp_path):
    tar(tmp_path)
    with tarfile.open(tmp_path / "a.tar") as source, tarfile.open(tmp_path / "b.tar.gz", "w:gz") as made:
        for member in source:
            made.addfile(member, source.extractfile(member))
    spec = spec_from_table("d", {"train": "b.tar.gz", "classes": 2}, base=tmp_path)
    (shard,) = list_shards(spec)
    examples = list(read_shard(spec, shard))
    assert {e.place for e in examples} == {None}
    with pytest.raises(
        ShardError, match=r"b\.tar\.gz: key 'k00' has no place; a compressed tar is read from its beginning"
    ):
        read_images(spec, shard, ["k00"], [None])
    with pytest.raises(ShardError, match="no such file"):
        read_images(spec, replace(shard, url=str(tmp_path / "gone.tar")), ["k00"], [(512, 1)])
