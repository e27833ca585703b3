"""Rows as CSV, JSON and Parquet, to a file, a URL or a pipe."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import uuid

import duckdb
import fsspec
import pyarrow.parquet as pq
import pytest
from curate.errors import QueryError, StorageError
from curate.reports import connect, query, write

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


def test_an_unknown_format_names_the_known():
    with pytest.raises(QueryError, match="table, csv, tsv, json, jsonl or parquet"):
        write(query(connect(), "SELECT 1"), "xlsx")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("out.csv", lambda text: list(csv.DictReader(io.StringIO(text)))),
        ("OUT.TSV", lambda text: list(csv.DictReader(io.StringIO(text), delimiter="\t"))),
        ("out.json", json.loads),
        ("out.jsonl", lambda text: [json.loads(line) for line in text.splitlines()]),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 12_345])
def test_the_ending_is_the_format_and_nothing_is_cut(name, read, count, tmp_path):
    (tmp_path / name).write_text("before")
    sql = f"SELECT range::VARCHAR AS n, 'a\tb,c' AS s FROM range({count})"
    assert write(query(connect(), sql), None, f"{tmp_path}/{name}") == count
    assert read((tmp_path / name).read_text()) == [{"n": str(i), "s": "a\tb,c"} for i in range(count)]


@pytest.mark.parametrize(
    ("format", "file", "told"),
    [
        (None, "out.txt", "'out.txt', whose ending names no format; add --format table"),
        (None, "out", "names no format"),
        ("json", "out.parquet", "--format is json, and --output 'out.parquet' ends like parquet"),
        ("csv", "out.csv.gz", "no text is compressed here"),
    ],
)
def test_an_ending_that_fits_no_format_is_asked_about(format, file, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError, match=re.escape(told)):
        write(query(connect(), "SELECT 1"), format, file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["json", "jsonl", "csv", "parquet"])
def test_two_columns_of_one_name_are_both_there(format, tmp_path):
    sql = "SELECT a.key, b.key, 3 AS key_1 FROM (SELECT 'left' AS key) a, (SELECT 'right' AS key) b"
    write(query(connect(), sql), None, f"{tmp_path}/out.{format}")
    (row,) = duckdb.sql(f"FROM '{tmp_path}/out.{format}'").fetchall()
    assert duckdb.sql(f"FROM '{tmp_path}/out.{format}'").columns == ["key", "key_2", "key_1"]
    assert row == ("left", "right", 3)


def test_json_keeps_what_it_can_and_says_what_it_cannot(tmp_path):
    sql = """
        SELECT 'inf'::FLOAT AS x, ['nan'::DOUBLE, 1.5] AS l, 0.10000000000000000001::DECIMAL(38, 20) AS d, 9007199254740993 AS i,
               TIMESTAMP '2026-01-02 03:04:05.5' AS t, TIMESTAMP_NS '2026-01-02 03:04:05.123456789' AS ns,
               DATE '12026-01-02' AS later, INTERVAL '1 month 2 days 3 seconds' AS v,
               '{"a": [1,\n0.10000000000000000001]}'::JSON AS j,
               MAP {1: 'a\n"b"'} AS m, 'x'::BLOB AS b, TIME '01:02:03' AS c, ['1.5'::DECIMAL(9, 3)] AS ds
    """
    told = []
    write(query(connect(), sql), None, f"{tmp_path}/out.jsonl", told.append)
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    row = json.loads(line, parse_float=str)
    assert told == ["2 values of x, l are NaN or infinite; JSON has neither, so they are null"]
    assert row["x"] is None and row["l"] == [None, "1.5"]
    assert (row["d"], row["i"]) == ("0.10000000000000000001", 9007199254740993)
    assert (row["t"], row["ns"]) == ("2026-01-02 03:04:05.500000", "2026-01-02 03:04:05.123456789")
    assert row["later"] == "12026-01-02"
    assert (row["v"], row["c"], row["ds"]) == ("P1M2DT3S", "01:02:03", ["1.500"])
    assert (row["j"], row["m"], row["b"]) == ({"a": [1, "0.10000000000000000001"]}, {"1": 'a\n"b"'}, "78")


@pytest.mark.parametrize(
    "value", ["170141183460469231731687303715884105727::HUGEINT", "-170141183460469231731687303715884105727"]
)
def test_the_largest_integers_keep_their_digits(value, tmp_path):
    write(query(connect(), f"SELECT {value} AS h"), None, f"{tmp_path}/out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [{"h": int(value.split(":")[0])}]


def test_standard_output_that_takes_only_text(monkeypatch):
    monkeypatch.setattr(sys, "stdout", notebook := io.StringIO())
    assert write(query(connect(), "SELECT 'é' AS a")) == 1
    assert list(csv.reader(notebook.getvalue().splitlines())) == [["a"], ["é"]]
