"""Rows as CSV, JSON and Parquet, to a file, a URL or a pipe."""

from __future__ import annotations

import csv
import io
import json
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
    with pytest.raises(QueryError, match="table, csv, json, parquet"):
        write(query(connect(), "SELECT 1"), "xlsx")
