"""Run a query that only reads. DuckDB's errors become QueryError."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from itertools import pairwise
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from ..errors import QueryError
from .sql import error_line

T = TypeVar("T")
BATCH_ROWS = 10_000
# How long a query may take to end after Ctrl-C.
INTERRUPT_SECONDS = 0.5
READS = frozenset(
    [
        "SELECT",
        "WITH",
        "FROM",
        "VALUES",
        "TABLE",
        "DESCRIBE",
        "DESC",
        "SHOW",
        "SUMMARIZE",
        "PIVOT",
        "PIVOT_WIDER",
        "UNPIVOT",
        "PIVOT_LONGER",
        "(",
    ]
)
PIVOTS = frozenset(["PIVOT", "PIVOT_WIDER"])
CHANGES = frozenset(["COPY", "DELETE", "INSERT", "MERGE", "TRUNCATE", "UPDATE"])
WAY_OUT = {
    "COPY": "use --format csv, json or parquet with --output FILE",
    "EXPORT": "use --format parquet with --output FILE",
    "CREATE": "name a part of one query with WITH name AS (SELECT ...)",
    "ATTACH": "read other files in the query: FROM 'file.parquet' or read_csv('file.csv')",
    "PRAGMA": "use SHOW TABLES, DESCRIBE or SUMMARIZE",
    "CALL": "use SHOW TABLES, DESCRIBE or SUMMARIZE",
}
DEFAULT_WAY_OUT = "open the files with plain DuckDB for anything but SELECT"


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    """Run one reading statement: SELECT, FROM, WITH, PIVOT, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN.

    Rows are streamed in batches, so a result may be larger than memory. JSON columns have Arrow's `json` extension type. Of
    columns with one name the second is NAME_1, as DuckDB calls it in a subquery. Ctrl-C ends the query.
    Raises QueryError if the statement does not only read, or if DuckDB rejects it, also while the stream is read.
    """
    check_read(sql)
    try:
        relation = connection.sql(sql)
        kinds = [str(kind) for kind in relation.types]
        # DuckDB 2 renamed the method; 1.4 has only the old name.
        arrow = getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch
        reader = _heard(connection, lambda: arrow(BATCH_ROWS))
    except (duckdb.Error, OSError) as e:
        raise QueryError(error_line(e)) from None
    schema = pa.schema(
        [
            pa.field(name, pa.json_() if kind == "JSON" and pa.types.is_string(field.type) else field.type)
            for name, field, kind in zip(_distinct(reader.schema.names), reader.schema, kinds, strict=True)
        ]
    )
    return pa.RecordBatchReader.from_batches(schema, _batches(connection, reader, schema))


def _batches(connection: duckdb.DuckDBPyConnection, reader: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The reader's batches with `schema`. Keeps a reference to the connection, without which the stream would end."""
    try:
        while (batch := _heard(connection, lambda: next(reader, None))) is not None:
            columns = [
                pa.ExtensionArray.from_storage(field.type, column)
                if isinstance(field.type, pa.BaseExtensionType) and not isinstance(column, pa.ExtensionArray)
                else column
                for field, column in zip(schema, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
    except (duckdb.Error, pa.ArrowException, OSError) as e:
        raise QueryError(error_line(e)) from None


def _heard(connection: duckdb.DuckDBPyConnection, work: Callable[[], T]) -> T:
    """Let DuckDB work in a thread, so that this one hears Ctrl-C, and then ends the query."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as e:
            done.set_exception(e)

    threading.Thread(target=run, daemon=True, name="query").start()
    try:
        return done.result()
    except KeyboardInterrupt:
        connection.interrupt()
        wait([done], INTERRUPT_SECONDS)
        raise


def _distinct(names: list[str]) -> list[str]:
    """The names, each once: a repeated one gets _1, _2, ..."""
    found: list[str] = []
    for name in names:
        free, count = name, 0
        while free in found or (count and free in names):
            count += 1
            free = f"{name}_{count}"
        found.append(free)
    return found


def check_read(sql: str) -> None:
    """Raise QueryError unless `sql` is a single statement that only reads."""
    try:
        sql.encode()
        statements = duckdb.extract_statements(sql)
    except UnicodeEncodeError:
        raise QueryError("the query is not UTF-8; save or type it as UTF-8") from None
    except duckdb.Error as e:
        raise QueryError(error_line(e)) from None
    words = _words(sql)
    if not statements or not words:
        raise QueryError("the query is empty; try: SHOW TABLES")
    first = words[0][1]
    kinds = [statement.type.name for statement in statements]
    # DuckDB turns a PIVOT without IN into several statements; those that it adds have no text.
    own = kinds == ["MULTI"] or (len(kinds) > 1 and not any(statement.query.strip() for statement in statements))
    pivots = own and any(word in PIVOTS for _, word in words)
    if len(statements) > 1 and not pivots:
        raise QueryError(f"found {len(statements)} statements, expected one; run them one by one")
    if first == "EXPLAIN" and (pivots or kinds == ["EXPLAIN"]):
        # EXPLAIN ANALYZE runs what it explains.
        check_read(sql.encode()[_explained(words) :].decode())
        return
    if first not in READS or not (pivots or kinds == ["SELECT"]):
        _refuse(first if first not in READS else kinds[-1])
    # WITH may contain statements that write: DuckDB 2 runs `WITH a AS (COPY ...) SELECT 1` as a SELECT.
    for (_, before), (_, word) in pairwise(words):
        if word in CHANGES and before in ("(", ")"):
            _refuse(word, f'; a column of this name is written "{word.lower()}"')


def _refuse(kind: str, more: str = "") -> None:
    raise QueryError(f"{kind} is not a read, and curate sql only reads; {WAY_OUT.get(kind, DEFAULT_WAY_OUT)}{more}")


def _words(sql: str) -> list[tuple[int, str]]:
    """(byte offset, upper-case text) of every token except comments; of an operator only its first character."""
    content, found = sql.encode(), []
    tokens = duckdb.tokenize(sql)
    ends = [*(offset for offset, _ in tokens), len(content)][1:]
    for (offset, kind), end in zip(tokens, ends, strict=True):
        name = str(kind).rsplit(".", 1)[-1]
        text = content[offset:end].decode(errors="replace").split(None, 1)[:1]
        if name == "comment" or not text:
            continue
        found.append((offset, text[0][0] if name == "operator" else text[0].split("--")[0].split("/*")[0].upper()))
    return found


def _explained(words: list[tuple[int, str]]) -> int:
    """Byte offset of the statement after EXPLAIN and its options."""
    i = 1
    if words[i][1] == "(" and words[i + 1][1] in ("ANALYZE", "ANALYSE", "FORMAT", "VERBOSE"):
        i = next(j for j, (_, word) in enumerate(words) if word == ")")  # options hold no brackets
        i += 1
    while words[i][1] in ("ANALYZE", "ANALYSE", "VERBOSE"):
        i += 1
    return words[i][0]
