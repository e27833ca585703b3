"""A label or caption inside a JSON member or a struct column: `json:caption`, `meta.json:tags.label`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ExampleError

MAX_JSON_BYTES = 16 << 20
WORDS = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}


def split_field(field: str) -> tuple[str, str]:
    """The member or column, and the path inside it ("" where the whole of it is the target)."""
    holder, _, path = field.partition(":")
    return holder, path


class Captions(bytes):
    """The first of several captions, as it is stored. `more` are the texts after it, which only evaluation reads."""

    more: tuple[str, ...] = ()

    @classmethod
    def of(cls, first: bytes, more: Iterable[Any]) -> Captions:
        """`more` may hold anything: what is no text, or is blank, is left out."""
        found = cls(first)
        decoded = (text.decode(errors="replace") if isinstance(text, bytes) else text for text in more)
        found.more = tuple(text.strip() for text in decoded if isinstance(text, str) and text.strip())
        return found


def json_field(content: bytes, field: str, *, is_label: bool) -> bytes | None:
    """The field's value as a target is stored; None where it is missing or null. Raises ExampleError."""
    holder, path = split_field(field)
    if len(content) > MAX_JSON_BYTES:
        raise ExampleError("target", f"{holder} has {len(content):,} bytes, at most {MAX_JSON_BYTES:,} are read")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise ExampleError("target", f"{holder} is not valid JSON") from None
    return stored(inside(found, path), field, is_label=is_label)


def inside(value: Any, path: str) -> Any:
    """What is at a path of nested names, None where it is missing. A name may have dots."""
    if not path or not isinstance(value, Mapping):
        return None if path else value
    if path in value:
        return value[path]
    for at, letter in enumerate(path):
        if letter == "." and path[:at] in value:
            return inside(value[path[:at]], path[at + 1 :])
    return None


def stored(value: Any, field: str, *, is_label: bool) -> bytes | None:
    """A value as a target is stored, None where there is none; of a list of captions the first, as `Captions`. Raises
    ExampleError."""
    more: list[Any] = []
    if not is_label and isinstance(value, list):
        value, more = (value[0], value[1:]) if value else (None, [])
    if value is None:
        return None
    if not isinstance(value, bytes | str) and (not is_label or isinstance(value, dict | list)):
        expected = "a number or a text" if is_label else "text or a list of texts"
        raise ExampleError("target", f"{field} is {WORDS.get(type(value), type(value).__name__)}, expected {expected}")
    try:
        found = value if isinstance(value, bytes) else str(value).encode()
    except (UnicodeEncodeError, ValueError):  # half of a surrogate pair; a number of thousands of digits
        raise ExampleError("target", f"{field} holds what is no text") from None
    return Captions.of(found, more) if more else found


def lines(content: bytes) -> bytes:
    """The captions of a text that has one on each line."""
    found = [line for line in content.splitlines() if line.strip()] or [content]
    return Captions.of(found[0], found[1:])
