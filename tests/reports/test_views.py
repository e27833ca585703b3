import csv
import io
import json
import subprocess
import sys
import uuid

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets import Failure, Shard
from curate.errors import QueryError, StorageError
from curate.reports import connect, query, write
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard
from curate.scoring.tasks import find_task
from fsspec.implementations.memory import MemoryFileSystem

META = {"reference_fingerprint": "f" * 16}
CONFIG = {
    "dataset": "digits",
    "policy": "learnability",
    "learner": "vit-ti",
    "online": "vit-mu",
    "reference_scores": "scores/dataset=digits/reference=good-1a2b3c4d",
    "reference": None,
    "filter_ratio": 0.5,
    "temperature": 0.1,
    "sampler": "softmax",
    "seed": 3,
    "budget_flops": 3e15,
}
SUMMARY = {
    "run": "a",
    "dataset": "digits",
    "policy": "learnability",
    "learner": "vit-ti",
    "online": "vit-mu",
    "seed": 3,
    "steps": 40,
    "examples_trained": 5120,
    "examples_scored": 10240,
    "ledger": {
        "learner_train": 12345678901234567890,
        "online_score": 2e12,
        "online_train": 3e12,
        "reference_score": 4e12,
        "reference_train": None,
        "outside": {"evaluate": 5.0},
    },
    "regimes": {"fully_amortised": 1.0, "foundation": 2.0, "pretrained_reference": 3.0, "nothing_amortised": None},
    "seconds": {"total": 12.5, "data": 1.0},
    "quality": {"top1": 0.61, "loss": 1.5},
    "counts": {"skipped": 7},
}


def put(root, path, content):
    with fsspec.open(f"{root}/{path}", "wb", auto_mkdir=True) as file:
        file.write(content if isinstance(content, bytes) else json.dumps(content).encode())


def put_table(root, path, table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    put(root, path, buffer.getvalue())


def commit(root, dataset, reference, shard, losses, task="classification", failures=(), width=0):
    rows = len(losses)
    columns = {
        "shard": [shard] * rows,
        "row": range(rows),
        "key": [f"{shard}-{i}" for i in range(rows)],
        "target_hash": [2**64 - 1 - i for i in range(rows)],
        "loss": losses,
        "label": range(rows),
        "predicted": [0] * rows,
        "similarity": [0.5] * rows,
        "image_embedding": [np.full(width, 0.5, np.float16)] * rows,
        "text_embedding": [np.full(width, 0.25, np.float16)] * rows,
    }
    schema = score_schema(find_task(task), width)
    table = pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)
    folder = f"{root}/dataset={dataset}/reference={reference}"
    commit_shard(folder, Shard(name=shard, url="x", size=1, bytes=1), table, list(failures), META)


def write_scores(root):
    broken = Failure(shard="00001", row=2, key="00001-2", stage="decode", reason="cut")
    commit(root, "digits", "good-1a2b3c4d", "00000", [0.25, 0.5])
    commit(root, "digits", "good-1a2b3c4d", "00001", [2.0, 4.0], failures=[broken])
    commit(root, "digits", "poor-99999999", "00000", [1.0])
    commit(root, "align", "clip-5e6f7a8b", "images", [-0.5], task="image-text", width=4)


def write_runs(root):
    put(root, "a/config.json", CONFIG)
    put(root, "a/summary.json", SUMMARY)
    put(root, "b/config.json", {"dataset": "digits", "policy": "uniform", "seed": 4, "temperature": "odd"})
    put(root, "c/config.json", {"dataset": "align", "reference": "runs/ref"})
    put(root, "c/summary.json", {"steps": 2, "quality": {"image_to_text_r1": 0.1, "text_to_image_r1": 0.2}})
    put(root, "d/config.json", {"policy": "uniform"})
    put(root, "d/summary.json", b'{"steps": 9')
    put(
        root,
        "a/metrics.jsonl",
        b'{"step": 1, "loss": 2.5, "online_loss": 1.25, "lr": 0.1, "seconds": {"data": 0.5, "train": 1.5}, "kept": 3}\n',
    )
    put(root, "b/metrics.jsonl", b'{"step": 1, "loss": NaN, "flops": {"learner_train": 7e9}}\n{"step": 2, "lo')
    selection = {
        "step": pa.array([1, 1], pa.int32()),
        "shard": ["00000", "00000"],
        "key": ["00000-0", "00000-1"],
        "online_loss": pa.array([1.0, 2.0], pa.float32()),
        "reference_loss": pa.array([0.25, None], pa.float32()),
        "score": pa.array([0.75, 1.5], pa.float32()),
        "selected": [True, False],
    }
    put_table(root, "a/selections/000000001-000000001.parquet", pa.table(selection))
    del selection["reference_loss"]
    put_table(root, "b/selections/000000001-000000001.parquet", pa.table(selection))


@pytest.fixture(params=["disk", "memory"])
def roots(request, tmp_path):
    root = str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    write_scores(f"{root}/scores")
    write_runs(f"{root}/runs")
    return {"scores": f"{root}/scores", "runs": f"{root}/runs"}


def rows(connection, sql):
    return query(connection, sql).read_all().to_pylist()


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


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("COPY runs TO 'x.csv'", "COPY"),
        ("ATTACH 'x.db'", "ATTACH"),
        ("INSTALL httpfs", "INSTALL"),
        ("LOAD httpfs", "LOAD"),
        ("INSERT INTO runs VALUES (1)", "INSERT"),
        ("CREATE TABLE t AS FROM runs", "CREATE"),
        ("CREATE TABLE t AS PIVOT runs ON policy", "CREATE"),
        ("SET threads = 1", "SET"),
        ("PRAGMA version", "PRAGMA"),
        ("CALL pragma_version()", "CALL"),
        ("DROP VIEW runs", "DROP"),
        ("EXPORT DATABASE 'x'", "EXPORT"),
        ("-- why\nUPDATE runs SET seed = 1", "UPDATE"),
        ("WITH a AS (SELECT 1) INSERT INTO runs FROM a", "INSERT"),
        ("EXPLAIN ANALYZE COPY runs TO 'x.csv'", "COPY"),
        ("EXPLAIN (ANALYZE, FORMAT json) COPY runs TO 'x.csv'", "COPY"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("", "empty"),
        ("-- only a comment", "empty"),
    ],
)
def test_only_reads_pass(sql, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError, match=kind) as caught:
        query(connect(), sql)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("body", ["/* é */ COPY (SELECT 1) TO 'x.csv'", "INSERT INTO t VALUES (1) RETURNING *"])
def test_a_write_within_with_is_refused(body, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError):
        query(connect(), f"WITH a AS ({body}) SELECT 1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "FROM runs;",
        "-- é\nWITH a AS (FROM runs) SELECT count(*) FROM a",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT '(copy', ') insert' AS \"(delete\"",
        "DESCRIBE scores",
        "SHOW TABLES",
        "SUMMARIZE scores",
        "PIVOT runs ON policy USING avg(top1) GROUP BY dataset",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT count(*) FROM scores",
        "EXPLAIN (ANALYZE, FORMAT json) SELECT 1",
    ],
)
def test_reads_run(roots, sql):
    assert query(connect(**roots), sql).read_all().num_rows > 0


def test_duckdbs_errors_are_one_line_with_their_hint(roots):
    with pytest.raises(QueryError, match=r'"polici" not found.*Candidate bindings: .*"policy"') as caught:
        query(connect(**roots), "SELECT polici\nFROM runs")
    assert "\n" not in str(caught.value)
    with pytest.raises(QueryError, match="syntax error"):
        query(connect(), "SELEC 1")
    with pytest.raises(QueryError, match="Could not convert string 'x'"):
        query(connect(), "SELECT (CASE WHEN range > 50000 THEN 'x' ELSE '1' END)::INT FROM range(100000)").read_all()


def test_other_files_join(roots, tmp_path):
    (tmp_path / "mine.csv").write_text("key,mine\n00000-0,seven\n")
    sql = f"SELECT DISTINCT mine FROM scores JOIN read_csv('{tmp_path}/mine.csv') USING (key)"
    assert rows(connect(**roots), sql) == [{"mine": "seven"}]


TYPES_SQL = """
    SELECT range AS n, range / 4 AS x, 'é, "' || range AS s, NULL::INT AS nothing, 'nan'::DOUBLE AS nan, [1, 2] AS l,
           {'a': range} AS st, MAP {'k': 1.5} AS m, '{"j": [1]}'::JSON AS j, 123456789012345678901234567890::HUGEINT AS h,
           DATE '2026-01-02' AS d, 'ab'::BLOB AS b, true AS t
    FROM range(3)
"""


@pytest.mark.parametrize("where", ["folder", "stdout"])
def test_json_round_trip(where, tmp_path, capsysbinary):
    file = None if where == "stdout" else f"{tmp_path}/new/out.json"
    assert write(query(connect(), TYPES_SQL), "json", file) == 3
    content = capsysbinary.readouterr().out if file is None else (tmp_path / "new/out.json").read_bytes()
    row = json.loads(content)[1]
    assert row == {
        "n": 1,
        "x": 0.25,
        "s": 'é, "1',
        "nothing": None,
        "nan": None,
        "l": [1, 2],
        "st": {"a": 1},
        "m": {"k": 1.5},
        "j": {"j": [1]},
        "h": 123456789012345678901234567890,
        "d": "2026-01-02",
        "b": "6162",
        "t": True,
    }


def test_csv_round_trip(tmp_path):
    write(query(connect(), f"SELECT * EXCLUDE (b) FROM ({TYPES_SQL})"), "csv", f"{tmp_path}/out.csv")
    row = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))[1]
    assert (row["n"], row["x"], row["s"], row["nothing"]) == ("1", "0.25", 'é, "1', "")
    assert row["h"] == "123456789012345678901234567890"
    assert [json.loads(row[name]) for name in ("l", "st", "m", "j")] == [[1, 2], {"a": 1}, {"k": 1.5}, {"j": [1]}]


def test_parquet_round_trip(tmp_path):
    write(query(connect(), TYPES_SQL), "parquet", f"{tmp_path}/out.parquet")
    back = duckdb.sql(f"SELECT * FROM '{tmp_path}/out.parquet'").fetchall()
    fresh = duckdb.sql(TYPES_SQL).fetchall()
    assert repr([row[:9] + row[10:] for row in back]) == repr([row[:9] + row[10:] for row in fresh])
    assert [int(row[9]) for row in back] == [row[9] for row in fresh]
    write(query(connect(), "SELECT 1 AS a WHERE false"), "parquet", f"{tmp_path}/none.parquet")
    assert pq.read_table(tmp_path / "none.parquet").schema.names == ["a"]


def test_output_may_be_a_url():
    url = f"memory://{uuid.uuid4().hex}/out.csv"
    write(query(connect(), "SELECT 1 AS a"), "csv", url)
    with fsspec.open(url, "rt") as file:
        assert list(csv.reader(file)) == [["a"], ["1"]]


def test_a_query_that_fails_on_the_way_leaves_no_file(tmp_path):
    sql = "SELECT (CASE WHEN range > 900000 THEN 'x' ELSE '1' END)::INT FROM range(1000000)"
    (tmp_path / "out.csv").write_text("before")
    with pytest.raises(QueryError, match="Could not convert"):
        write(query(connect(), sql), "csv", f"{tmp_path}/out.csv")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.csv", "before")]


def test_parquet_is_kept_from_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(QueryError, match="--output"):
        write(query(connect(), "SELECT 1"), "parquet")


@pytest.mark.parametrize("file", ["nowhere://x/out.csv", "/dev/null/out.csv"])
def test_output_that_cannot_be_written_is_named(file):
    with pytest.raises(StorageError, match=file):
        write(query(connect(), "SELECT 1"), "csv", file)


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


def test_an_unknown_format_names_the_known():
    with pytest.raises(QueryError, match="table, csv, json, parquet"):
        write(query(connect(), "SELECT 1"), "xlsx")


def test_a_table_reads_easily(capsys):
    sql = "SELECT 'a' AS name, 1234567 AS n, 0.123456::DOUBLE AS x, NULL AS nothing, 1.5e15::DOUBLE AS f, '[b]' AS tag"
    assert write(query(connect(), sql)) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["name", "n", "x", "nothing", "f", "tag"]
    assert lines[2] == ["a", "1,234,567", "0.1235", "NULL", "1.5e+15", "[b]"]


def test_a_table_stops_and_counts(capsys):
    assert write(query(connect(), "SELECT range AS i, repeat('x', 100) AS long FROM range(12345)")) == 50
    out = capsys.readouterr().out
    assert out.rstrip().endswith("… 12,345 rows; --format csv for all")
    numbers = [line for line in out.splitlines() if "xxx" in line]
    assert len(numbers) == 50
    assert [int(line.split()[0]) for line in numbers] == list(range(50))
    assert numbers[7].index("7") == numbers[10].index("0")
    write(query(connect(), "FROM runs WHERE false"))
    assert "0 rows" in capsys.readouterr().out


def test_a_terminal_gets_whole_columns(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    write(query(connect(), "SELECT " + ", ".join(f"{i} AS column_{i:02d}" for i in range(12))))
    out = terminal.getvalue()
    assert "column_04" in out.splitlines()[1]
    assert "more columns: " in out and out.rstrip().endswith("column_11")
    assert all(len(line) <= 60 or "\x1b" in line for line in out.splitlines())


def test_reports_need_neither_torch_nor_beam():
    code = "import sys, curate.reports; print([m for m in ('torch', 'apache_beam', 'webdataset') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
