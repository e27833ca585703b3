"""Rows as a table that fits the terminal."""

from __future__ import annotations

import io
import sys

from curate.reports import connect, query, write


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
