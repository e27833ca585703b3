"""A query's rows as a table for people: the first ones, as wide as the terminal, or all of them in full."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import IO, Any

import pyarrow as pa
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .values import json_text, plain_text, values_of

MAX_ROWS = 50
MAX_CELL = 60
MAX_COUNTED = 1_000_000


def print_table(result: pa.RecordBatchReader, file: IO[str]) -> int:
    """Print at most 50 rows to a terminal; returns the rows printed.

    Columns that do not fit are left out and named below the table. The rest of the rows is counted up to a million, so that
    a short look at a big table does not read all of it.
    """
    rows: list[tuple[Any, ...]] = []
    total = 0
    for batch in result:
        head = batch.slice(0, MAX_ROWS - len(rows))
        if head.num_rows:
            rows += _rows_of(head)
        total += batch.num_rows
        if total > MAX_COUNTED:
            break
    names = result.schema.names
    cells = [[format_cell(value) for value in row] for row in rows]
    widths = [max(cell_len(text) for text in (name, *column)) for name, column in _columns(names, cells)]
    console = Console(file=file, highlight=False)
    console.width = console.width or 80  # COLUMNS=0, where nobody knows the size
    shown = _that_fit(widths, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, field in zip(names[:shown], result.schema, strict=False):
        table.add_column(
            Text(name), justify="right" if _is_number(field.type) else "left", no_wrap=True, overflow="ellipsis"
        )
    for row, texts in zip(rows, cells, strict=True):
        pairs = zip(row[:shown], texts[:shown], strict=True)
        table.add_row(*(Text(text, style="dim" if value is None else "") for value, text in pairs))
    console.print(table)
    if total > MAX_COUNTED:
        console.print(f"… over {MAX_COUNTED:,} rows; --format csv for all")
    elif total > len(rows):
        console.print(f"… {total:,} rows; --format csv for all")
    elif total == 0:
        console.print("0 rows")
    if shown < len(names):
        console.print(f"… {len(names) - shown} more columns: {', '.join(names[shown:])}", markup=False)
    return len(rows)


def write_table(result: pa.RecordBatchReader, write: Callable[[str], object]) -> int:
    """Write all rows and columns, no value cut, for a pipe or a file; returns the rows. Holds them in memory."""
    cells = [[format_cell(value, cut=False) for value in row] for batch in result for row in _rows_of(batch)]
    names = result.schema.names
    numeric = [_is_number(field.type) for field in result.schema]
    widths = [max(cell_len(text) for text in (name, *column)) for name, column in _columns(names, cells)]
    for row in (names, ["-" * width for width in widths], *cells):
        padded = []
        for text, width, right in zip(row, widths, numeric, strict=True):
            room = " " * (width - cell_len(text))
            padded.append(room + text if right else text + room)
        write("  ".join(padded).rstrip() + "\n")
    return len(cells)


def _rows_of(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    columns = (values_of(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True))
    return list(zip(*columns, strict=True))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def format_cell(value: Any, cut: bool = True) -> str:
    """One value for people: 1234567 is 1,234,567, a float has 4 significant digits, long text is cut unless told otherwise."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    text = json_text(value, []) if isinstance(value, dict | list) else plain_text(value)
    # Only the diagrams of EXPLAIN need their line breaks.
    if "\n" in text and text.lstrip()[:1] in "┌╭":
        return text
    text = " ".join(text.split())
    return text if len(text) <= MAX_CELL or not cut else text[: MAX_CELL - 1] + "…"


def _columns(names: list[str], rows: list[list[str]]) -> list[tuple[str, list[str]]]:
    return [(name, [line for row in rows for line in row[i].split("\n")]) for i, name in enumerate(names)]


def _that_fit(widths: list[int], room: int) -> int:
    """How many leading columns fit with three spaces between them; at least one."""
    used, count = 0, 0
    for width in widths:
        used += width + 3
        if used > room + 3 and count:
            break
        count += 1
    return count
