"""What a query may be: only what reads."""

from __future__ import annotations

import pytest
from curate.errors import QueryError
from curate.reports import connect, query
from support.report_folders import rows


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
