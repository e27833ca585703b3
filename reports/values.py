"""A value of a query's result as text: in JSON, and in a field of CSV."""

from __future__ import annotations

import json
import math
from collections import Counter
from decimal import Decimal
from typing import Any

import pyarrow as pa

from ..errors import QueryError


def values_of(name: str, column: pa.Array) -> list[Any]:
    """The Python values of a column. Times that Python cannot hold, such as nanoseconds, are text.

    Raises QueryError where a value in a list or a struct is such a time.
    """
    if isinstance(column.type, pa.JsonType):
        column = column.storage
    try:
        found: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as e:
        if not pa.types.is_temporal(column.type):
            raise QueryError(f"column '{name}': {e}; cast it to VARCHAR") from None
        found = column.cast(pa.string()).to_pylist()
    return found


def json_column(name: str, column: pa.Array, lost: Counter[str]) -> list[str]:
    """Each value of a column as JSON. `lost` counts what became null since JSON does not have it, by column."""
    values = values_of(name, column)
    if isinstance(column.type, pa.JsonType):
        return ["null" if value is None else _one_line(value) for value in values]
    texts = []
    for value in values:
        missing: list[float] = []
        texts.append(json_text(value, missing))
        lost[name] += len(missing)
    return texts


def json_text(value: Any, missing: list[float]) -> str:
    """A value as JSON: decimals with all their digits, blobs as hex, times as text. NaN and infinity are null, and are
    added to `missing`."""
    if isinstance(value, dict):
        parts = (f"{json.dumps(str(key), ensure_ascii=False)}: {json_text(v, missing)}" for key, v in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(json_text(part, missing) for part in value) + "]"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, float) and not math.isfinite(value):
        missing.append(value)
        return "null"
    plain = value is None or isinstance(value, bool | int | float)
    return json.dumps(value if plain else plain_text(value), ensure_ascii=False)


def field_column(name: str, column: pa.Array) -> pa.Array:
    """A column as strings for a field of CSV: lists, structs and maps as JSON, blobs as hex."""
    is_json = isinstance(column.type, pa.JsonType)

    def text(value: Any) -> str:
        if isinstance(value, dict | list):
            return json_text(value, [])
        return _one_line(value) if is_json else plain_text(value)

    return pa.array([None if value is None else text(value) for value in values_of(name, column)], pa.string())


def plain_text(value: Any) -> str:
    """A single value without quotes."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pa.MonthDayNano):  # ISO 8601
        months, days, nanoseconds = value
        return f"P{months}M{days}DT{Decimal(nanoseconds) / 10**9:f}S"
    return str(value)


def _one_line(text: str) -> str:
    """JSON text without line breaks, which can only be between its parts: JSON Lines and people need one line."""
    return " ".join(text.splitlines())
