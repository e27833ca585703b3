"""Write a query's rows as a table for people, CSV, TSV, JSON, JSON Lines or Parquet, to the terminal, a pipe or a file."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ..datasets.writing import whole_file
from ..errors import QueryError
from ..units import Report
from .sql import error_line
from .terminal import print_table, write_table
from .values import field_column, json_column, json_text

ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def choose_format(format: str | None, file: str | None) -> str:
    """The format that was asked for, or that of the file's ending; without a file a table on a terminal, CSV elsewhere.

    Raises QueryError where the format is unknown, the ending names none or another one, or Parquet would go to a terminal.
    """
    known = ", ".join(FORMATS[:-1]) + f" or {FORMATS[-1]}"
    if format is not None and format not in FORMATS:
        raise QueryError(f"unknown format '{format}', expected {known}")
    if file is None:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        if format == "parquet" and terminal:
            raise QueryError("Parquet cannot be shown on a terminal; give --output FILE or use a pipe")
        return format or ("table" if terminal else "csv")
    ending = PurePosixPath(file.split("?")[0]).suffix.lower()
    named = ENDINGS.get(ending)
    if ending in COMPRESSED:
        raise QueryError(f"--output is '{file}', and no text is compressed here; use .parquet, or pipe it into gzip")
    if format is None and named is None:
        raise QueryError(f"--output is '{file}', whose ending names no format; add --format {known}")
    if None not in (format, named) and format != named:
        raise QueryError(
            f"--format is {format}, and --output '{file}' ends like {named}; drop --format or change the ending"
        )
    return str(format or named)


def write(
    result: pa.RecordBatchReader, format: str | None = None, file: str | None = None, report: Report | None = None
) -> int:
    """Write the rows in a format of `choose_format`; returns how many were written.

    `file` is a path or fsspec URL, which appears whole or not at all, in place of one that is there; None is standard
    output. Batches are written as they come, so memory does not grow with the rows, but for a table. On a terminal a table
    stops at 50 rows and says how many there are; elsewhere nothing is cut. `report` is told what JSON does not have.
    Raises QueryError as `choose_format` does, and where a column's type cannot be written or the query fails on the way;
    StorageError where the file cannot be written.
    """
    format = choose_format(format, file)
    lost: Counter[str] = Counter()
    try:
        if file is not None:
            with whole_file(file) as partial, open(partial, "wb") as binary:
                rows = WRITERS[format](result, binary, lost)
        elif format == "table" and sys.stdout.isatty():
            rows = print_table(result, sys.stdout)
        else:
            with _standard_output() as binary:
                rows = WRITERS[format](result, binary, lost)
    except BrokenPipeError:
        raise
    except (pa.ArrowException, duckdb.Error) as e:
        raise QueryError(error_line(e)) from None
    except OSError as e:
        raise QueryError(f"standard output: cannot be written: {error_line(e)}") from None
    columns = ", ".join(name for name, count in lost.items() if count)
    if report and columns:
        report(f"{lost.total():,} values of {columns} are NaN or infinite; JSON has neither, so they are null")
    return rows


@contextmanager
def _standard_output() -> Any:
    """Standard output for bytes, also where it takes only text, as in a notebook."""
    sys.stdout.flush()
    binary = getattr(sys.stdout, "buffer", None)
    if binary is not None:
        yield binary
        binary.flush()
        return
    held = io.BytesIO()
    yield held
    sys.stdout.write(held.getvalue().decode())


def _write_table(result: pa.RecordBatchReader, file: IO[bytes], lost: Counter[str]) -> int:
    return write_table(result, lambda text: file.write(text.encode()))


def _write_csv(result: pa.RecordBatchReader, file: IO[bytes], lost: Counter[str], delimiter: str = ",") -> int:
    """NULL is an empty field; lists, structs and maps are JSON in a field."""
    schema = pa.schema([pa.field(f.name, pa.string()) if _needs_text(f.type) else f for f in result.schema])
    rows = 0
    options = pa_csv.WriteOptions(delimiter=delimiter)
    with pa_csv.CSVWriter(pa.PythonFile(file, mode="w"), schema, write_options=options) as writer:
        for batch in result:
            columns = [
                field_column(name, column) if _needs_text(column.type) else column
                for name, column in zip(schema.names, batch.columns, strict=True)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows += batch.num_rows
    return rows


def _write_tsv(result: pa.RecordBatchReader, file: IO[bytes], lost: Counter[str]) -> int:
    return _write_csv(result, file, lost, "\t")


def _write_json(result: pa.RecordBatchReader, file: IO[bytes], lost: Counter[str]) -> int:
    """An array with one object per line."""
    file.write(b"[\n")
    rows = _write_objects(result, file, lost, between=",\n")
    file.write(b"\n]\n" if rows else b"]\n")
    return rows


def _write_jsonl(result: pa.RecordBatchReader, file: IO[bytes], lost: Counter[str]) -> int:
    rows = _write_objects(result, file, lost, between="\n")
    file.write(b"\n" if rows else b"")
    return rows


def _write_objects(result: pa.RecordBatchReader, file: IO[bytes], lost: Counter[str], between: str) -> int:
    """Every row as a JSON object."""
    names, rows = result.schema.names, 0
    keys = [json_text(name, []) + ": " for name in names]
    for batch in result:
        columns = [json_column(name, column, lost) for name, column in zip(names, batch.columns, strict=True)]
        objects = [
            "{" + ", ".join(k + v for k, v in zip(keys, row, strict=True)) + "}" for row in zip(*columns, strict=True)
        ]
        if objects:
            file.write(((between if rows else "") + between.join(objects)).encode())
            rows += len(objects)
    return rows


def _write_parquet(result: pa.RecordBatchReader, file: IO[bytes], lost: Counter[str]) -> int:
    rows = 0
    with pq.ParquetWriter(file, result.schema, compression="zstd") as writer:
        for batch in result:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _needs_text(kind: pa.DataType) -> bool:
    """Whether Arrow's CSV writer cannot write the type, or not for people."""
    return (
        pa.types.is_nested(kind)
        or pa.types.is_interval(kind)
        or isinstance(kind, pa.BaseExtensionType)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


WRITERS: dict[str, Callable[[pa.RecordBatchReader, IO[bytes], Counter[str]], int]] = {
    "table": _write_table,
    "csv": _write_csv,
    "tsv": _write_tsv,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}
FORMATS = tuple(WRITERS)
