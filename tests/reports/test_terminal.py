"""Rows as a table that fits the terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest
from curate.reports import connect, query, write


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def getvalue(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", super().getvalue())


def on_terminal(monkeypatch, columns="60"):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    for name, value in {"COLUMNS": columns, "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    return terminal


def test_a_table_reads_easily(monkeypatch):
    terminal = on_terminal(monkeypatch)
    sql = "SELECT 'a' AS name, 1234567 AS n, 0.123456::DOUBLE AS x, NULL AS nothing, 1.5e15::DOUBLE AS f, '[b]' AS tag"
    assert write(query(connect(), sql)) == 1
    lines = [line.split() for line in terminal.getvalue().splitlines() if line.strip()]
    assert lines[0] == ["name", "n", "x", "nothing", "f", "tag"]
    assert lines[2] == ["a", "1,234,567", "0.1235", "NULL", "1.5e+15", "[b]"]


def test_a_table_on_a_terminal_stops_and_counts(monkeypatch):
    terminal = on_terminal(monkeypatch)
    assert write(query(connect(), "SELECT range AS i, repeat('x', 40) AS long FROM range(12345)")) == 50
    out = terminal.getvalue()
    assert out.rstrip().endswith("… 12,345 rows; --format csv for all")
    numbers = [line for line in out.splitlines() if "xxx" in line]
    assert len(numbers) == 50
    assert [int(line.split()[0]) for line in numbers] == list(range(50))
    assert numbers[7].index("7") == numbers[10].index("0")
    write(query(connect(), "FROM runs WHERE false"))
    assert "0 rows" in terminal.getvalue()


def test_a_table_in_a_pipe_or_a_file_is_whole(capsys, tmp_path):
    sql = "SELECT range AS i, repeat('é', 100) AS long, 'x y' AS s FROM range(300)"
    assert write(query(connect(), sql), "table") == 300
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["i", "long", "s"]
    assert lines[2:] == [f"{i:>3}  {'é' * 100}  x y" for i in range(300)]
    assert write(query(connect(), sql), "table", f"{tmp_path}/out.txt") == 300
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines() == lines


def test_a_terminal_gets_whole_columns(monkeypatch):
    terminal = on_terminal(monkeypatch)
    write(query(connect(), "SELECT " + ", ".join(f"{i} AS column_{i:02d}" for i in range(12))))
    out = terminal.getvalue()
    assert "column_04" in out.splitlines()[1]
    assert "more columns: " in out and out.rstrip().endswith("column_11")
    assert all(len(line) <= 60 for line in out.splitlines())


@pytest.mark.parametrize("columns", ["0", "1", "5", "20"])
def test_no_width_is_too_small(monkeypatch, columns):
    terminal = on_terminal(monkeypatch, columns)
    assert write(query(connect(), "SELECT 1 AS a, 'long enough to be cut' AS b")) == 1
    assert terminal.getvalue()
