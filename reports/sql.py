"""Parts of SQL text, and DuckDB's errors as one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from ..errors import QueryError

Columns = Mapping[str, str]


def literal(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def empty_sql(columns: Columns) -> str:
    """No rows of these columns and types."""
    return "SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items()) + " WHERE false"


def parquet_sql(files: str | Sequence[str], columns: Columns, of_path: Mapping[str, str]) -> str:
    """SELECT from Parquet files (a pattern, or several): first the columns `of_path`, which regexes find in the path,
    then `columns` (NULL where a file lacks one).

    With a declared schema DuckDB need not open every file to merge their schemas. A condition on a column of the path
    still skips the other files without opening them.
    """
    fields = ", ".join(
        f"{literal(name)}: {{name: {literal(name)}, type: {literal(kind)}, default_value: NULL}}"
        for name, kind in columns.items()
    )
    selected = [*(f"{path_part_sql(regex)} AS {name}" for name, regex in of_path.items()), *columns]
    named = literal(files) if isinstance(files, str) else f"[{', '.join(map(literal, files))}]"
    source = f"read_parquet({named}, filename = true, schema = MAP {{{fields}}})"
    return f"SELECT {', '.join(selected)} FROM {source}"


def path_part_sql(regex: str) -> str:
    return f"regexp_extract(filename, {literal(regex)}, 1)"


def error_line(error: BaseException) -> str:
    """DuckDB's message in one line, with its hints and without its excerpt of the query."""
    text = str(error).split("\nLINE ")[0]
    return " ".join(text.split()) or type(error).__name__


def one_row(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """The row of a query that has one. Raises QueryError."""
    try:
        (found,) = connection.execute(sql).fetchall()
    except (duckdb.Error, OSError) as e:
        raise QueryError(error_line(e)) from None
    return tuple(found)
