"""A round trip through every format: what is written is what was in the source, and other tools can read it."""

from __future__ import annotations

import io
import json
import shutil
import uuid

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from curate.datasets.readers import read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import add_dataset, find_dataset, load_config, spec_from_path
from curate.errors import ReadError
from curate.reports import export_tars
from curate.reports.export_folders import plan_files
from curate.reports.export_picks import Picks
from PIL import Image
from support.collection import make_collection
from support.commands import curate
from support.tars import read_tar, replace_member

KEEP = ("--keep", "50%", "--by", "loss")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the tars, to damage."""
    shutil.copytree(made.root / "data", tmp_path / "source" / "data")
    shutil.copy(made.toml, tmp_path / "source" / "curate.toml")
    return tmp_path / "source"


def export(made, target, *options, toml=None, dataset="pairs", scores=None):
    config = toml or made.toml
    return curate(
        *("export", target, "--config", config, "--dataset", dataset, "--scores", scores or made.scores, *options)
    )


def kept(made):
    return sorted(sorted(made.examples, key=lambda one: one.loss)[:30], key=lambda one: (one.shard, one.row))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_text_has_shard_and_key(made, tmp_path):
    assert export(made, tmp_path / "keys.txt", *KEEP).code == 0
    lines = (tmp_path / "keys.txt").read_text().splitlines()
    assert lines == [f"{one.shard}\t{one.key}" for one in kept(made)]


@pytest.mark.parametrize("ending", ["txt", "npy", "jsonl", "parquet"])
def test_an_ending_may_be_in_capital_letters(made, tmp_path, ending):
    for target in (f"z.{ending}", f"Z.{ending.upper()}"):
        assert export(made, tmp_path / target, *KEEP).code == 0
    assert (tmp_path / f"z.{ending}").read_bytes() == (tmp_path / f"Z.{ending.upper()}").read_bytes()


def chosen_by_resharder(file, uids):
    """Which of these uids DataComp's resharder would copy, and how often: two binary searches in the array."""
    subset = np.load(file, mmap_mode="r")
    assert subset.dtype == np.dtype("u8,u8")
    counts = {}
    for uid in uids:
        wanted = np.array([divmod(int(uid, 16), 2**64)], subset.dtype)[0]
        counts[uid] = np.searchsorted(subset, wanted, "right") - np.searchsorted(subset, wanted, "left")
    return {uid: count for uid, count in counts.items() if count}


def test_uids_for_datacomp_from_wherever_they_are(made, tmp_path):
    wanted = {one.uid: 1 for one in kept(made)}
    sql = "SELECT shard, key, uid FROM scores JOIN metadata USING (dataset, shard, key) ORDER BY loss LIMIT 30"
    files = []
    for name, options in {
        "json": KEEP,
        "metadata": (*KEEP, "--uid", "metadata"),
        "query": ("--sql", sql),
        "both": ("--sql", "SELECT shard, key FROM scores ORDER BY loss LIMIT 30", "--uid", "metadata"),
    }.items():
        done = export(made, tmp_path / f"{name}.npy", *options)
        assert done.code == 0, done.err
        files.append((tmp_path / f"{name}.npy").read_bytes())
    assert len(set(files)) == 1
    assert chosen_by_resharder(tmp_path / "json.npy", [one.uid for one in made.examples]) == wanted
    array = np.load(tmp_path / "json.npy")
    assert [f"{high:016x}{low:016x}" for high, low in array.tolist()] == sorted(wanted)
    assert json.loads((tmp_path / "json.npy.export.json").read_text())["uids"] == 30


def test_a_key_may_be_the_uid(made, tmp_path):
    """Two examples with the same uid are one: the resharder would copy each of them twice."""
    sql = "SELECT shard, key, md5(right(key, 1)) AS uid FROM scores"
    assert export(made, tmp_path / "x.npy", "--sql", sql).code == 0
    assert len(np.load(tmp_path / "x.npy")) == 10
    assert export(made, tmp_path / "y.npy", "--sql", "SELECT shard, key FROM scores", "--uid", "key").code == 0
    expected = sorted(divmod(int(one.key, 16), 2**64) for one in made.examples)
    assert np.load(tmp_path / "y.npy").tolist() == expected


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT shard, key, 'x' || key AS uid FROM scores", "shard '00000', key '000000000': the uid is 'x000000000'"),
        ("SELECT shard, key || '-' AS key FROM scores", "first '000000000-': it has no .json member"),
    ],
)
def test_a_uid_that_is_none(made, tmp_path, sql, told):
    assert told in export(made, tmp_path / "x.npy", "--sql", sql).error


def test_tars_hold_the_same_bytes_and_are_the_same_again(made, tmp_path):
    for name in ("a", "b"):
        done = export(made, tmp_path / name, *KEEP, "--format", "webdataset")
        assert done.code == 0, done.err
    found = [member for path in sorted((tmp_path / "a").iterdir()) for member in read_tar(path)]
    assert found == [member for one in kept(made) for member in one.members]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["00000.tar", "00001.tar", "00002.tar"]


def test_tars_are_read_by_webdataset_and_by_curate(made, tmp_path):
    assert export(made, tmp_path / "out", *KEEP, "--format", "webdataset", "--shard-size", 1000).code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.tar"]
    theirs = list(webdataset.WebDataset(str(tmp_path / "out" / "00000.tar"), shardshuffle=False))
    assert [(one["__key__"], one["txt"].decode()) for one in theirs] == [(one.key, one.caption) for one in kept(made)]
    spec = spec_from_path(str(tmp_path / "out" / "00000.tar"))
    ours = [example for shard in list_shards(spec) for example in read_shard(spec, shard)]
    assert [(one.key, one.target, one.image) for one in ours] == [
        (one.key, one.caption, one.members[0][1]) for one in kept(made)
    ]


def test_an_interrupted_export_is_resumed(made, tmp_path, monkeypatch):
    assert export(made, tmp_path / "whole", *KEEP, "--format", "webdataset").code == 0
    real, calls = export_tars.write_members, []

    def dies_in_the_second(path, members):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise ReadError("the storage is away")
        real(path, members)

    monkeypatch.setattr(export_tars, "write_members", dies_in_the_second)
    assert export(made, tmp_path / "out", *KEEP, "--format", "webdataset").error == "the storage is away"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.tar"]
    assert json.loads((tmp_path / "out.export.json").read_text())["finished"] is False
    first = (tmp_path / "out" / "00000.tar").stat()
    other = export(made, tmp_path / "out", "--keep", "20%", "--by", "loss", "--format", "webdataset")
    assert "is an unfinished export with another sql, options" in other.error
    done = export(made, tmp_path / "out", *KEEP, "--format", "webdataset")
    assert done.code == 0, done.err
    assert len(calls) == 4
    assert (tmp_path / "out" / "00000.tar").stat() == first
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_cut_source_ends_the_export_and_leaves_no_half_tar(made, copied, tmp_path):
    tar = copied / "data" / "00001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    options = (*KEEP, "--format", "webdataset")
    done = export(made, tmp_path / "out", *options, toml=copied / "curate.toml")
    assert "the tar is cut or damaged after key" in done.error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.tar"]
    tar.write_bytes(whole)
    assert export(made, tmp_path / "out", *options, toml=copied / "curate.toml").code == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_key_that_is_in_two_shards_of_one_tar(made, tmp_path):
    shutil.copytree(made.root / "data", tmp_path / "data")
    shutil.copy(tmp_path / "data" / "00000.tar", tmp_path / "data" / "00001.tar")
    add_dataset(tmp_path / "curate.toml", "pairs", {"train": "data/{00000..00001}.tar", "text": "txt"})
    sql = "SELECT shard, '000000003' AS key FROM (VALUES ('00000'), ('00001')) t(shard)"
    options = ("--sql", sql, "--format", "webdataset")
    done = export(made, tmp_path / "one", *options, "--shard-size", 9, toml=tmp_path / "curate.toml")
    assert "key '000000003' is in the shards '00000' and '00001'" in done.error
    assert export(made, tmp_path / "two", *options, toml=tmp_path / "curate.toml").code == 0


@pytest.fixture(scope="module")
def other_sources(made, tmp_path_factory):
    """The same examples as Parquet in small row groups, and as an image folder with captions; each has a score table."""
    root = tmp_path_factory.mktemp("others")
    rows = [
        {
            "id": one.key,
            "image": {"bytes": one.members[0][1], "path": f"{one.key}.png"},
            "text": one.caption,
            "x": one.loss,
        }
        for one in made.examples
    ]
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("text", pa.string()),
            ("x", pa.float32()),
        ],
        metadata={"mine": "kept"},
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), root / "all.parquet", row_group_size=20)
    for one in made.examples:
        image = root / "images" / one.shard / f"{one.key}.v1.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(one.members[0][1])
        image.with_suffix(".txt").write_text(one.caption)
    entry = {"train": "all.parquet", "text": "text", "key": "id", "rows_per_shard": 20}
    add_dataset(root / "curate.toml", "table", entry)
    add_dataset(root / "curate.toml", "folder", {"train": "images", "text": "txt"})
    return root


def truth(root, name):
    spec = find_dataset(name, load_config(root / "curate.toml"))
    return [one for shard in list_shards(spec) for one in read_shard(spec, shard)]


@pytest.mark.parametrize("name", ["table", "folder"])
def test_tars_of_rows_and_of_image_files(made, other_sources, tmp_path, name):
    source = truth(other_sources, name)
    wanted = source[::3]
    pq.write_table(
        pa.table({"shard": [o.shard for o in wanted], "key": [o.key for o in wanted]}), tmp_path / "w.parquet"
    )
    options = ("--sql", f"FROM '{tmp_path}/w.parquet'", "--format", "webdataset", "--shard-size", 1000)
    done = export(made, tmp_path / "out", *options, toml=other_sources / "curate.toml", dataset=name)
    assert done.code == 0, done.err
    spec = spec_from_path(f"{tmp_path}/out/*.tar")
    found = [one for shard in list_shards(spec) for one in read_shard(spec, shard)]
    assert [(o.image, o.target) for o in found] == [(o.image, o.target) for o in wanted]
    (path,) = (tmp_path / "out").iterdir()
    about = [json.loads(content) for member, content in read_tar(path) if member.endswith(".json")]
    assert about == [{"shard": o.shard, "key": o.key} for o in wanted]


@pytest.mark.parametrize("name", ["pairs", "table", "folder"])
def test_a_hugging_face_folder(made, other_sources, tmp_path, name):
    toml = made.toml if name == "pairs" else other_sources / "curate.toml"
    source = truth(toml.parent, name)
    wanted = source[1::4]
    columns = {"shard": [o.shard for o in wanted], "key": [o.key for o in wanted], "score": np.arange(len(wanted)) / 4}
    pq.write_table(pa.table(columns), tmp_path / "w.parquet")
    options = ("--sql", f"FROM '{tmp_path}/w.parquet'", "--format", "huggingface")
    done = export(made, tmp_path / "out", *options, toml=toml, dataset=name)
    assert done.code == 0, done.err
    files = sorted((tmp_path / "out").iterdir())
    count = len({o.shard for o in wanted})
    assert [path.name for path in files] == [f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    features = json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["text"] == {"dtype": "string", "_type": "Value"}
    assert features["score"] == {"dtype": "float64", "_type": "Value"}
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert [(r["shard"], r["key"], r["image"]["bytes"], r["text"]) for r in rows] == [
        (o.shard, o.key, o.image, o.target) for o in wanted
    ]
    assert [r["score"] for r in rows] == columns["score"].tolist()
    assert Image.open(io.BytesIO(rows[0]["image"]["bytes"])).size == (8, 8)
    spec = spec_from_path(f"{tmp_path}/out/*.parquet")
    again = [one for shard in list_shards(spec) for one in read_shard(spec, shard)]
    assert [(o.image, o.target) for o in again] == [(o.image, o.target) for o in wanted]


def test_classes_are_named_in_a_hugging_face_folder(digits, tmp_path):
    sql = "SELECT shard, key, loss, label AS stored FROM scores WHERE label IN (3, 8)"
    options = ("--sql", sql, "--format", "huggingface", "--shard-size", 100000)
    done = export(None, tmp_path / "out", *options, toml=digits.toml, dataset="digits", scores=digits.scores)
    assert done.code == 0, done.err
    (path,) = (tmp_path / "out").iterdir()
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(digits.dataset().classes), "_type": "ClassLabel"}
    rows = pq.read_table(path).to_pylist()
    assert len(rows) > 100
    assert all(row["label"] == row["stored"] for row in rows)


def test_a_bad_example_cannot_be_exported_with_its_image(made, copied, tmp_path):
    replace_member(copied / "data" / "00000.tar", {"000000000.txt": b""})
    options = ("--sql", "SELECT shard, key FROM scores", "--format", "huggingface")
    done = export(made, tmp_path / "hf", *options, toml=copied / "curate.toml")
    assert "1 of 20 chosen examples cannot be exported, first '000000000': target: txt is empty" in done.error


def test_rows_of_parquet_stay_as_they_are(made, other_sources, tmp_path):
    spec = find_dataset("table", load_config(other_sources / "curate.toml"))
    names = [shard.name for shard in list_shards(spec)]
    assert len(names) == 3
    homes = {one.key: names[i // 20] for i, one in enumerate(made.examples)}
    wanted = [one for one in made.examples if one.loss > 0]
    table = pa.table({"shard": [homes[o.key] for o in wanted], "key": [o.key for o in wanted]})
    pq.write_table(table, tmp_path / "w.parquet")
    options = ("--sql", f"FROM '{tmp_path}/w.parquet'", "--format", "rows")
    done = export(made, tmp_path / "out", *options, toml=other_sources / "curate.toml", dataset="table")
    assert done.code == 0, done.err
    source = pq.read_table(other_sources / "all.parquet")
    found = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").iterdir())])
    assert found.schema.equals(source.schema, check_metadata=True)
    assert found.to_pylist() == [row for row in source.to_pylist() if row["x"] > 0]


def test_picks_are_read_in_batches_that_cross_shards(tmp_path):
    shards = ["a"] * 5 + ["b"] + ["c"] * 7
    table = pa.table({"shard": shards, "key": [str(i) for i in range(len(shards))]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=3)
    picks = Picks(str(tmp_path / "p.parquet"))
    assert picks.counts == {"a": 5, "b": 1, "c": 7}
    found = [(name, part["key"].to_pylist()) for name, part in picks.by_shard()]
    assert found == [("a", list("01234")), ("b", ["5"]), ("c", ["6", "7", "8", "9", "10", "11", "12"])]


def test_whole_shards_are_put_together():
    counts = {"a": 5, "b": 1, "c": 7, "d": 2}
    for least, wanted in ((None, ["a", "b", "c", "d"]), (6, ["ab", "c", "d"]), (100, ["abcd"])):
        assert ["".join(f.shards) for f in plan_files(counts, least, lambda i, n, name: name)] == wanted


@pytest.fixture
def far(made, tmp_path):
    """The collection's data and score table in memory, at a URL."""
    root = f"memory://{uuid.uuid4().hex}"
    for name in ("data", "scores"):
        for path in (made.root / name).rglob("*"):
            if path.is_file():
                with fsspec.open(f"{root}/{path.relative_to(made.root)}", "wb") as file:
                    file.write(path.read_bytes())
    add_dataset(tmp_path / "curate.toml", "pairs", {"train": f"{root}/data/{{00000..00002}}.tar", "text": "txt"})
    return root


def test_data_table_and_target_may_be_urls(made, far, tmp_path):
    where = {"toml": tmp_path / "curate.toml", "scores": f"{far}/scores"}
    done = export(made, f"{far}/out", *KEEP, "--format", "webdataset", **where)
    assert done.code == 0, done.err
    assert export(made, tmp_path / "local", *KEEP, "--format", "webdataset").code == 0
    for name, content in contents(tmp_path / "local").items():
        with fsspec.open(f"{far}/out/{name}", "rb") as file:
            assert file.read() == content
    done = export(made, f"{far}/sub.npy", *KEEP, "--uid", "metadata", **where)
    assert done.code == 0, done.err
    with fsspec.open(f"{far}/sub.npy", "rb") as file:
        found = np.load(io.BytesIO(file.read()))
    assert [f"{high:016x}{low:016x}" for high, low in found.tolist()] == sorted(one.uid for one in kept(made))
    with fsspec.open(f"{far}/out.export.json", "rb") as file:
        assert json.loads(file.read())["finished"] is True
    fs, path = fsspec.url_to_fs(far)
    left = {name.rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)}
    assert left == {"data", "scores", "out", "out.export.json", "sub.npy", "sub.npy.export.json"}
