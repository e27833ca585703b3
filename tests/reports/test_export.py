"""Which examples an export has, and what it says of itself."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.collection import make_collection
from support.commands import curate
from support.report_folders import put, put_table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection"))


def export(made, target, *options, scores=None):
    return curate(
        *("export", target, "--config", made.toml, "--dataset", "pairs", "--scores", scores or made.scores, *options)
    )


def names(rows):
    return [(row["shard"], row["key"]) for row in rows]


def best(examples, value, count):
    """The (shard, key) of the `count` lowest, in the order of the data."""
    chosen = sorted(examples, key=value)[:count]
    return sorted((one.shard, one.key) for one in chosen)


def test_the_lowest_losses_are_kept_and_counted(made, tmp_path):
    done = export(made, tmp_path / "half.parquet", "--keep", "50%", "--by", "loss")
    assert done.code == 0, done.err
    assert "30 of 60 scored examples exported" in done.err
    table = pq.read_table(tmp_path / "half.parquet")
    assert names(table.to_pylist()) == best(made.examples, lambda one: one.loss, 30)
    assert table.schema.names == ["shard", "row", "key", "target_hash", "loss", "similarity", "value"]
    about = json.loads((tmp_path / "half.parquet.export.json").read_text())
    assert (about["rows"], about["of"], about["without_value"], about["finished"]) == (30, 60, 0, True)
    assert about["tables"] == [
        {
            "folder": f"{made.scores}/dataset=pairs/reference=clip-0123abcd",
            "reference": "clip",
            "reference_fingerprint": "0123abcd" * 8,
            "dataset_fingerprint": made.spec().fingerprint,
        }
    ]
    assert about["options"]["keep"] == "50%"
    assert "ORDER BY value ASC" in about["sql"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.parquet", "half.parquet.export.json"]


@pytest.mark.parametrize(
    ("options", "value", "count"),
    [
        (("--keep", "7", "--by", "loss", "--order", "highest"), lambda one: -one.loss, 7),
        (("--keep", "0.25", "--by", "similarity"), lambda one: one.loss, 15),
        (("--keep", "10", "--by", "easy-reference"), lambda one: one.loss, 10),
        (("--keep", "10", "--by", "abs(loss) + 1", "--order", "lowest"), lambda one: abs(one.loss), 10),
        (("--keep", "10", "--by", "width", "--order", "lowest"), lambda one: (one.row, one.shard), 10),
    ],
)
def test_what_is_kept_by_columns_expressions_and_metadata(made, tmp_path, options, value, count):
    assert export(made, tmp_path / "x.parquet", *options).code == 0
    assert names(pq.read_table(tmp_path / "x.parquet").to_pylist()) == best(made.examples, value, count)


def test_a_share_of_every_group(made, tmp_path):
    assert export(made, tmp_path / "x.parquet", "--keep", "50%", "--by", "loss", "--per", "caption").code == 0
    groups = defaultdict(list)
    for one in made.examples:
        groups[one.caption].append(one)
    wanted = [name for own in groups.values() for name in best(own, lambda one: one.loss, int(len(own) / 2 + 0.5))]
    assert names(pq.read_table(tmp_path / "x.parquet").to_pylist()) == sorted(wanted)


def test_learnability_by_a_second_table(made, tmp_path):
    options = ("--keep", "20", "--by", "learnability", "--online", made.online)
    assert export(made, tmp_path / "x.parquet", *options).code == 0
    wanted = best(made.examples, lambda one: one.loss - one.online_loss, 20)
    assert names(pq.read_table(tmp_path / "x.parquet").to_pylist()) == wanted


def test_learnability_by_what_a_run_recorded(made, tmp_path):
    """The mean over the steps that drew an example; an example that was never drawn has no value."""
    drawn = made.examples[:30]
    steps = [(step, one, one.online_loss + shift) for step, shift in ((1, -0.5), (2, 0.5)) for one in drawn]
    put(tmp_path, "runs/mine/config.json", {"dataset": "pairs"})
    selections = {
        "step": [step for step, _, _ in steps],
        "shard": [one.shard for _, one, _ in steps],
        "key": [one.key for _, one, _ in steps],
        "online_loss": pa.array([loss for _, _, loss in steps], pa.float32()),
        "reference_loss": pa.array([one.loss for _, one, _ in steps], pa.float32()),
        "score": pa.array([loss - one.loss for _, one, loss in steps], pa.float32()),
        "selected": [step == 1 for step, _, _ in steps],
    }
    put_table(tmp_path, "runs/mine/selections/000000001-000000002.parquet", pa.table(selections))
    run = ("--run", tmp_path / "runs" / "mine")
    done = export(made, tmp_path / "x.parquet", "--keep", "50%", "--by", "learnability", *run)
    assert done.code == 0, done.err
    assert "15 of 60 scored examples (30 have no value to choose by)" in done.err
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert names(rows) == best(drawn, lambda one: one.loss - one.online_loss, 15)
    assert {(row["drawn"], row["selected"]) for row in rows} == {(2, 1)}
    by_name = ("--run", "mine", "--runs", tmp_path / "runs")  # as the view runs has it
    assert export(made, tmp_path / "z.parquet", "--keep", "50%", "--by", "learnability", *by_name).code == 0
    assert pq.read_table(tmp_path / "z.parquet").to_pylist() == rows
    other = export(made, tmp_path / "y.parquet", "--keep", "1", "--by", "score", "--run", tmp_path / "runs" / "no")
    assert "no run there" in other.error


def test_a_query_chooses_and_repeats_nothing(made, tmp_path):
    sql = "SELECT shard, key, loss FROM scores WHERE loss < 0 UNION ALL SELECT shard, key, loss FROM scores -- twice"
    done = export(made, tmp_path / "x.jsonl", "--sql", sql)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert rows == [{"shard": one.shard, "key": one.key, "loss": one.loss} for one in made.examples]


def test_the_view_of_metadata(made, tmp_path):
    sql = "SELECT status, count(*) AS n, count(loss) AS scored, count(DISTINCT shard) AS shards FROM metadata "
    sql += "LEFT JOIN scores USING (dataset, shard, key) GROUP BY status ORDER BY n"
    out = tmp_path / "out.json"
    curate("sql", sql, "--config", made.toml, "--scores", made.scores, "--format", "json", "--output", out)
    assert json.loads(out.read_text()) == [
        {"status": "failed_to_download", "n": 3, "scored": 0, "shards": 3},
        {"status": "success", "n": 60, "scored": 60, "shards": 3},
    ]


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("x.npy", (), "give either --sql or --keep"),
        ("x.npy", ("--keep", "50%"), "--keep needs --by"),
        ("x.npy", ("--keep", "much", "--by", "loss"), "--keep is 'much', expected a share such as 50% or a number"),
        ("x.npy", ("--keep", "50%", "--by", "loss + 1"), "needs --order lowest or --order highest"),
        ("x.npy", ("--keep", "50%", "--by", "learnability"), "needs an online model; give --run"),
        ("x.npy", ("--keep", "50%", "--by", "losss"), "--by losss: there is no column 'losss'; did you mean 'loss'?"),
        ("x.npy", ("--keep", "1", "--by", "loss + siz"), "--by loss + siz: there is no column 'siz'; known are"),
        (
            "x.npy",
            ("--keep", "1", "--by", "loss", "--per", "kex"),
            "--per kex: there is no column 'kex'; did you mean 'key'?",
        ),
        (
            "x.npy",
            ("--keep", "1", "--by", "caption", "--order", "lowest"),
            "--by caption: Conversion Error: Could not convert",
        ),
        ("x.npy", ("--sql", "SELECT 1 AS shard", "--by", "loss"), "--by belongs to --keep"),
        ("x.npy", ("--sql", "SELECT key FROM scores"), "an export also needs shard"),
        ("x.npy", ("--sql", "DROP TABLE scores"), "DROP is not a read"),
        ("x.txt", ("--sql", "SELECT shard, key FROM scores WHERE false"), "no example is chosen"),
        ("x.txt", ("--sql", "SELECT '7' AS shard, key FROM scores"), "data set 'pairs' has no shard '7'"),
        (
            "x.txt",
            ("--sql", "SELECT shard, NULLIF(key, '000000000') AS key FROM scores"),
            "rows whose shard or key is NULL",
        ),
        (
            "x.txt",
            ("--keep", "1", "--by", "loss", "--shard-size", "9"),
            "--shard-size is for webdataset, huggingface, rows",
        ),
        (
            "x.txt",
            ("--keep", "1", "--by", "loss", "--uid", "key"),
            "--uid key is for --format datacomp, and this is keys",
        ),
        ("x", ("--keep", "50%", "--by", "loss"), "its ending is none of .npy, .txt, .jsonl, .parquet; give --format"),
        ("x.tar", ("--keep", "50%", "--by", "loss", "--format", "datacomp"), "writes a file that ends in .npy"),
        (
            "x.npy",
            ("--keep", "50%", "--by", "loss", "--format", "webdataset"),
            "writes a folder; give a name without .npy",
        ),
        (
            "x",
            ("--keep", "50%", "--by", "loss", "--format", "rows"),
            "copies rows of Parquet files; data set 'pairs' is web",
        ),
        ("x", ("--keep", "50%", "--by", "loss", "--format", "zip"), "--format is 'zip', expected datacomp"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(made, tmp_path, target, options, told):
    done = export(made, tmp_path / target, *options)
    assert done.code == 1
    assert told in done.error
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_not_there_or_not_the_only_one(made, tmp_path):
    assert (
        "0 score tables of data set 'pairs'"
        in export(made, tmp_path / "x.npy", "--keep", "5", "--by", "loss", scores=tmp_path).error
    )
    for name, root in (("a", made.scores), ("b", made.online)):
        shutil.copytree(f"{root}/dataset=pairs/reference=clip-0123abcd", tmp_path / f"dataset=pairs/reference={name}")
    done = export(made, tmp_path / "x.npy", "--keep", "5", "--by", "loss", scores=tmp_path)
    assert "2 score tables" in done.error and "give the folder of one" in done.error
    one = tmp_path / "dataset=pairs" / "reference=a"
    assert export(made, tmp_path / "x.parquet", "--keep", "5", "--by", "loss", scores=one).code == 0


def test_a_target_that_is_in_use(made, tmp_path):
    (tmp_path / "x.txt").write_text("mine")
    keep = ("--keep", "5", "--by", "loss")
    assert "was not written by curate export" in export(made, tmp_path / "x.txt", *keep).error
    assert (tmp_path / "x.txt").read_text() == "mine"
    assert export(made, tmp_path / "y.txt", *keep).code == 0
    assert "is a finished export of 5 examples" in export(made, tmp_path / "y.txt", *keep).error
