"""A score table is an index: the images of any scored examples, as the shards have them."""

import random
import shutil

import pytest
from curate.datasets import list_shards, read_shard
from curate.datasets.readers import Example
from curate.datasets.spec import spec_from_table
from curate.errors import JoinError, TableError
from curate.scoring import open_scores
from curate.scoring.tables.images import ImageReader


def test_images_of_examples_of_many_shards(digits):
    dataset, table = digits.dataset(), open_scores(digits.scores)
    stored = {
        (e.shard, e.key): e for s in list_shards(dataset) for e in read_shard(dataset, s) if isinstance(e, Example)
    }
    rows = table.read(["shard", "key", "offset", "length"]).to_pylist()
    assert {(r["shard"], r["key"]): (r["offset"], r["length"]) for r in rows} == {k: e.place for k, e in stored.items()}
    some = random.Random(0).choices(sorted(stored), k=40)
    shards, keys = zip(*some, strict=True)
    assert ImageReader(table, dataset).read(shards, keys) == [stored[pair].image for pair in some]


def test_what_was_not_scored_or_has_changed_is_refused(digits, tmp_path):
    dataset, table = digits.dataset(), open_scores(digits.scores)
    reader = ImageReader(table, dataset)
    with pytest.raises(JoinError, match=r"shard '00000', key 'nobody': expected a score"):
        reader.read(["00000"], ["nobody"])
    with pytest.raises(JoinError, match="data set 'digits' has no such shard"):
        reader.read(["99999"], ["nobody"])
    shard = list_shards(dataset)[0]
    shutil.copy(shard.url, tmp_path / "00000.tar")
    with open(tmp_path / "00000.tar", "ab") as file:
        file.write(bytes(512))
    moved = spec_from_table("digits", {"train": str(tmp_path / "00000.tar"), "classes": 10})
    with pytest.raises(TableError, match=r"shard '00000' was scored at size \d+ and is now \d+"):
        ImageReader(table, moved).read(["00000"], [next(iter(table.recent("00000").places))])
