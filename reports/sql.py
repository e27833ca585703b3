"""Pieces of SQL text, and DuckDB's errors as one line."""

from __future__ import annotations

from collections.abc import Mapping

Columns = Mapping[str, str]


def literal(text: str) -> str:
    """A string constant of SQL."""
    return "'" + text.replace("'", "''") + "'"


def empty_sql(columns: Columns) -> str:
    """No rows of these columns and types."""
    return "SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items()) + " WHERE false"


def parquet_sql(pattern: str, columns: Columns, of_path: Mapping[str, str]) -> str:
    """Parquet files read as `columns` (NULL where a file has not got one), after what a regex finds in their path.

    A declared schema keeps DuckDB from opening every file to unite theirs; a condition on a column of the path still
    leaves out the other files unopened.
    """
    fields = ", ".join(
        f"{literal(name)}: {{name: {literal(name)}, type: {literal(kind)}, default_value: NULL}}"
        for name, kind in columns.items()
    )
    found = ", ".join(f"{path_part_sql(regex)} AS {name}" for name, regex in of_path.items())
    source = f"read_parquet({literal(pattern)}, filename = true, schema = MAP {{{fields}}})"
    return f"SELECT {found}, {', '.join(columns)} FROM {source}"


def path_part_sql(regex: str) -> str:
    return f"regexp_extract(filename, {literal(regex)}, 1)"


def error_line(error: BaseException) -> str:
    """What DuckDB says in one line, its hints kept and the drawing of the query left out."""
    text = str(error).split("\nLINE ")[0]
    return " ".join(text.split()) or type(error).__name__
