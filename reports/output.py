"""Write a query's rows as a table for people, CSV, JSON or Parquet, to the terminal, a pipe or a file."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ..datasets.writing import whole_file
from ..errors import QueryError
from .sql import error_line
from .terminal import print_table


def write(result: pa.RecordBatchReader, format: str = "table", file: str | None = None) -> int:
    """Write the rows as `table`, `csv`, `json` (one array) or `parquet`; returns how many were written.

    `file` is a path or fsspec URL, which appears whole or not at all; None is standard output. Batches are written
    as they come, so memory does not grow with the rows. A table stops at 50 rows and says how many there are.
    Raises QueryError where the format is unknown, Parquet would go to a terminal, a column's type cannot be written,
    or the query fails on the way; StorageError where the file cannot be written.
    """
    writer = WRITERS.get(format)
    if writer is None:
        raise QueryError(f"unknown format '{format}'; known are {', '.join(FORMATS)}")
    try:
        if file is not None:
            with whole_file(file) as partial, open(partial, "wb") as binary:
                return writer(result, binary)
        if format == "parquet" and sys.stdout.isatty():
            raise QueryError("Parquet cannot be shown on a terminal; give --output FILE or use a pipe")
        if format == "table":
            return print_table(result, sys.stdout)
        sys.stdout.flush()
        rows = writer(result, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return rows
    except BrokenPipeError:
        raise
    except (pa.ArrowException, duckdb.Error) as e:
        raise QueryError(error_line(e)) from None
    except OSError as e:
        raise QueryError(f"standard output: cannot be written: {error_line(e)}") from None


def _write_table(result: pa.RecordBatchReader, file: IO[bytes]) -> int:
    text = io.TextIOWrapper(file, encoding="utf-8")
    rows = print_table(result, text)
    text.flush()
    text.detach()
    return rows


def _write_csv(result: pa.RecordBatchReader, file: IO[bytes]) -> int:
    """NULL is an empty field; lists, structs and maps are JSON in a field."""
    schema = pa.schema([pa.field(f.name, pa.string()) if _needs_text(f.type) else f for f in result.schema])
    rows = 0
    with pa_csv.CSVWriter(pa.PythonFile(file, mode="w"), schema) as writer:
        for batch in result:
            columns = [
                pa.array([None if v is None else _as_text(v) for v in _values(column)], pa.string())
                if _needs_text(column.type)
                else column
                for column in batch.columns
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows += batch.num_rows
    return rows


def _write_json(result: pa.RecordBatchReader, file: IO[bytes]) -> int:
    """An array with one object per line. NaN is null, since JSON has none; JSON columns are objects, not text."""
    names, rows = result.schema.names, 0
    file.write(b"[")
    for batch in result:
        for values in zip(*map(_values, batch.columns), strict=True):
            row = dict(zip(names, map(_plain, values), strict=True))
            file.write((",\n" if rows else "\n").encode() + json.dumps(row, ensure_ascii=False).encode())
            rows += 1
    file.write(b"\n]\n")
    return rows


def _write_parquet(result: pa.RecordBatchReader, file: IO[bytes]) -> int:
    rows = 0
    with pq.ParquetWriter(file, result.schema, compression="zstd") as writer:
        for batch in result:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


WRITERS: dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], int]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
}
FORMATS = tuple(WRITERS)


def _values(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    if isinstance(column.type, pa.JsonType):
        return [None if value is None else json.loads(value) for value in values]
    return values


def _needs_text(kind: pa.DataType) -> bool:
    """Whether Arrow's CSV writer cannot write the type."""
    return pa.types.is_nested(kind) or pa.types.is_interval(kind) or isinstance(kind, pa.BaseExtensionType)


def _as_text(value: Any) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The value in types that JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_plain(part) for part in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, str | int | bool) else str(value)
