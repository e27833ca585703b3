"""The views: what every row says, whatever is missing, damaged or elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from curate.errors import QueryError, StorageError
from curate.reports import connect, query
from fsspec.implementations.memory import MemoryFileSystem
from support.commands import curate
from support.report_folders import CONFIG, SUMMARY, commit, put, put_table, rows, write_runs, write_scores


def test_scores_of_both_tasks_are_one_view_without_the_failures(roots):
    connection = connect(**roots)
    found = rows(connection, "SELECT dataset, reference, shard, key, loss, label, similarity FROM scores ORDER BY ALL")
    assert [tuple(row.values()) for row in found] == [
        ("align", "clip-5e6f7a8b", "images", "images-0", -0.5, None, 0.5),
        ("digits", "good-1a2b3c4d", "00000", "00000-0", 0.25, 0, None),
        ("digits", "good-1a2b3c4d", "00000", "00000-1", 0.5, 1, None),
        ("digits", "good-1a2b3c4d", "00001", "00001-0", 2.0, 0, None),
        ("digits", "good-1a2b3c4d", "00001", "00001-1", 4.0, 1, None),
        ("digits", "poor-99999999", "00000", "00000-0", 1.0, 0, None),
    ]
    (row,) = rows(connection, "SELECT target_hash, image_embedding, text_embedding FROM scores WHERE dataset = 'align'")
    assert row == {"target_hash": 2**64 - 1, "image_embedding": [0.5] * 4, "text_embedding": [0.25] * 4}


def test_failures_keep_their_partition(roots):
    (row,) = rows(connect(**roots), "FROM failures")
    assert row == {
        "dataset": "digits",
        "reference": "good-1a2b3c4d",
        "shard": "00001",
        "row": 2,
        "key": "00001-2",
        "stage": "decode",
        "reason": "cut",
    }


def test_plain_duckdb_reads_the_scores_alone(tmp_path):
    write_scores(str(tmp_path))
    source = f"read_parquet('{tmp_path}/*/*/*.parquet', hive_partitioning = true, union_by_name = true)"
    plain = duckdb.sql(f"SELECT dataset, reference, key, loss FROM {source} ORDER BY ALL").fetchall()
    connection = connect(scores=str(tmp_path))
    ours = connection.sql("SELECT dataset, reference, key, loss FROM scores ORDER BY ALL").fetchall()
    assert plain == ours
    assert len(ours) == 6


def test_a_run_is_a_row_finished_or_not(roots):
    a, b, c, d = rows(connect(**roots), "FROM runs ORDER BY run")
    assert {
        name: a[name] for name in ("run", "dataset", "policy", "learner", "online", "sampler", "seed", "steps")
    } == {
        "run": "a",
        "dataset": "digits",
        "policy": "learnability",
        "learner": "vit-ti",
        "online": "vit-mu",
        "sampler": "softmax",
        "seed": 3,
        "steps": 40,
    }
    assert a["reference"] == "good-1a2b3c4d"
    assert (a["filter_ratio"], a["temperature"], a["budget_flops"], a["seconds"]) == (0.5, 0.1, 3e15, 12.5)
    assert a["learner_train_flops"] == pytest.approx(12345678901234567890)
    assert (a["online_score_flops"], a["online_train_flops"], a["reference_score_flops"]) == (2e12, 3e12, 4e12)
    assert a["reference_train_flops"] is None
    assert (a["learner_updates"], a["examples_scored"], a["top1"], a["image_to_text_r1"]) == (40, 10240, 0.61, None)
    for column, kept in [
        ("quality", SUMMARY),
        ("regimes", SUMMARY),
        ("counts", SUMMARY),
        ("config", {"config": CONFIG}),
    ]:
        assert json.loads(a[column]) == kept[column]
    assert [row["finished"] for row in (a, b, c, d)] == [True, False, True, False]
    assert (b["policy"], b["seed"], b["temperature"], b["steps"], b["top1"]) == ("uniform", 4, None, None, None)
    assert (c["dataset"], c["reference"], c["image_to_text_r1"], c["text_to_image_r1"]) == (
        "align",
        "runs/ref",
        0.1,
        0.2,
    )
    assert d["steps"] is None


def test_a_torn_line_of_metrics_hides_no_other(roots):
    first, second = rows(connect(**roots), "FROM metrics ORDER BY run")
    assert (first["run"], first["step"], first["loss"], first["lr"]) == ("a", 1, 2.5, 0.1)
    assert (first["seconds"]["data"], first["seconds"]["train"], first["seconds"]["select"]) == (0.5, 1.5, None)
    assert (first["online_loss"], first["reference_loss"]) == (1.25, None)
    assert json.loads(first["line"])["kept"] == 3
    assert (second["run"], second["flops"]["learner_train"]) == ("b", 7e9)
    assert second["loss"] is None or np.isnan(second["loss"])


def test_selections_join_with_scores(roots):
    joined = rows(
        connect(**roots),
        """SELECT run, key, selected, reference_loss, loss FROM selections JOIN runs USING (run)
           LEFT JOIN scores USING (dataset, reference, shard, key) ORDER BY ALL""",
    )
    assert [tuple(row.values()) for row in joined] == [
        ("a", "00000-0", True, 0.25, 0.25),
        ("a", "00000-1", False, None, 0.5),
        ("b", "00000-0", True, None, None),
        ("b", "00000-1", False, None, None),
    ]


def test_analysis_unites_the_columns_of_data_sets(roots):
    root = roots["scores"].removesuffix("/scores")
    put_table(root, "one.parquet", pa.table({"shard": ["00000"], "key": ["00000-0"], "noisy": [True]}))
    put_table(root, "two/x.parquet", pa.table({"shard": ["0"], "key": ["k"], "true_label": [4], "dataset": ["other"]}))
    datasets = {
        "digits": {"analysis": f"{root}/one.parquet"},
        "align": {"analysis": f"{root}/two"},
        "none": {"train": "x"},
        "later": {"analysis": f"{root}/later.parquet"},
    }
    found = rows(connect(**roots, datasets=datasets), "SELECT dataset, key, noisy, true_label FROM analysis ORDER BY 1")
    assert [tuple(row.values()) for row in found] == [("align", "k", None, 4), ("digits", "00000-0", True, None)]


def test_a_damaged_analysis_names_its_data_set(tmp_path):
    put(tmp_path, "bad.parquet", b"not parquet")
    with pytest.raises(QueryError, match=r"data set 'digits': analysis .*bad\.parquet cannot be read"):
        connect(datasets={"digits": {"analysis": f"{tmp_path}/bad.parquet"}})


@pytest.mark.parametrize("view", ["scores", "failures", "runs", "metrics", "selections", "analysis"])
def test_a_view_without_files_has_the_columns_and_no_rows(roots, view):
    empty, full = (
        query(connection, f"FROM {view}").read_all()
        for connection in (connect(scores=f"{roots['scores']}-no", runs=f"{roots['runs']}-no"), connect(**roots))
    )
    assert empty.num_rows == 0
    assert empty.schema == full.schema


def test_roots_may_hold_glob_characters(tmp_path):
    root = f"{tmp_path}/it's [a] *"
    write_scores(f"{root}/scores")
    write_runs(f"{root}/runs")
    connection = connect(scores=f"{root}/scores", runs=f"{root}/runs/")
    assert rows(connection, "SELECT count(*) AS n FROM scores") == [{"n": 6}]
    assert rows(connection, "SELECT count(*) AS n FROM runs") == [{"n": 4}]


class CountingFileSystem(MemoryFileSystem):
    protocol = "counting"
    cachable = True
    opened: list[str] = []  # noqa: RUF012
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("counting://"))

    def unstrip_protocol(self, name):
        return f"counting://{name.lstrip('/')}"

    def _open(self, path, *args, **kwargs):
        self.opened.append(path)
        return super()._open(path, *args, **kwargs)


def test_connecting_opens_no_file_and_a_condition_opens_only_its_partition():
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    write_scores("counting://x/scores")
    for i in range(200):
        commit("counting://x/scores", "many", "r-00000000", f"{i:05d}", [0.5])
    write_runs("counting://x/runs")
    CountingFileSystem.opened.clear()
    connection = connect(scores="counting://x/scores", runs="counting://x/runs")
    assert CountingFileSystem.opened == []
    assert rows(connection, "SELECT count(*) AS n FROM scores WHERE dataset = 'align'") == [{"n": 1}]
    assert {path.split("/")[-3] for path in CountingFileSystem.opened} == {"dataset=align"}


@pytest.mark.parametrize("root", ["nowhere://x", "memory://x"])
def test_a_root_that_cannot_be_opened_is_named(root):
    if root.startswith("nowhere"):
        with pytest.raises(StorageError, match=root):
            connect(scores=root)
    else:
        assert rows(connect(scores=root, runs=root), "FROM scores") == []


def test_a_damaged_score_file_is_an_error_that_names_it(tmp_path):
    write_scores(str(tmp_path))
    put(tmp_path, "dataset=digits/reference=good-1a2b3c4d/00001.parquet", b"PAR1 not parquet PAR1")
    with pytest.raises(QueryError, match=r"00001\.parquet"):
        query(connect(scores=str(tmp_path)), "SELECT sum(loss) FROM scores").read_all()


def test_reports_need_neither_torch_nor_beam():
    code = "import sys, curate.reports; print([m for m in ('torch', 'apache_beam', 'webdataset') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_root_that_is_named_and_not_there_is_no_empty_view(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("--scores", "--runs"):
        told = curate("sql", "SELECT count(*) FROM scores", option, "nowhere")
        assert told.code == 1 and told.error.startswith(f"{option} is 'nowhere', and no such folder is there")
    assert curate("sql", "SELECT count(*) AS n FROM scores").out.split() == ['"n"', "0"]  # nothing is made yet
