"""The columns of a Parquet file that a data set reads: their types are checked once, before any row is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.types as types

from ..errors import ShardError
from .fields import inside, json_field, split_field, stored
from .storage import without_query
from .targets import Target

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Columns:
    """Which columns hold image, target and key, and how a target's value becomes what is stored.

    `target` and `key` are None where the file has no such column: the target is then `constant`, the value in the
    file's path, the key the row's number. `meanings` are the names that the file itself gives to numbers. `empty` names
    columns of type null, which hold no value at all.
    """

    image: str
    target: str | None
    key: str | None
    to_stored: Callable[[Any], bytes | None]
    constant: bytes | None
    meanings: tuple[str, ...]
    empty: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [name for name in dict.fromkeys((self.image, self.target, self.key)) if name]


def find_columns(
    schema: pa.Schema, url: str, *, dataset: str, image: Sequence[str], target: Target, field: str, key: str
) -> Columns:
    """Raises ShardError where a column is missing, is there twice, or is of a type that is not understood."""
    where = f"[datasets.{dataset}]"
    image_column = next((name for name in image if name in schema.names), None)
    holder, path = (field, "") if field in schema.names else split_field(field)
    constant = None if holder in schema.names else hive_value(url, holder)
    asked = ((image_column, "image"), (holder, "label/text"), (key or None, "key"))
    for column, setting in asked:
        if (setting == "key" and not column) or (setting == "label/text" and constant is not None):
            continue
        if column not in schema.names:
            raise ShardError(
                f"{url}: no column for {setting} (looked for {column or ', '.join(image)}); "
                f"it has {', '.join(schema.names)}; set it in {where}"
            )
        if schema.names.count(column) > 1:
            raise ShardError(f"{url}: column '{column}' is there twice; write the file again with one of each name")
    assert image_column is not None
    in_file = constant is None

    def kind(column: str) -> pa.DataType:
        return plain(schema.field(column).type)

    def refuse(column: str, setting: str, expected: str) -> None:
        found = schema.field(column).type
        raise ShardError(f"{url}: column '{column}' is {found}, expected {expected}; set {setting} in {where}")

    if not holds_image(kind(image_column)):
        refuse(image_column, "image", "the encoded images as binary or struct<bytes, path>")
    is_label = target.has_classes
    as_json = in_file and path and is_text(kind(holder))
    if in_file and not as_json and not holds_target(nested(kind(holder), path), is_label=is_label):
        refuse(holder, target.setting, target.kinds)
    if key and not holds_key(kind(key)):
        refuse(key, "key", "text or whole numbers")
    if as_json:

        def to_stored(value: Any) -> bytes | None:
            content = value.encode() if isinstance(value, str) else value
            return None if content is None else json_field(content, field, is_label=is_label)
    else:

        def to_stored(value: Any) -> bytes | None:
            return stored(inside(value, path), field, is_label=is_label)

    has_numbers = in_file and not path and types.is_integer(kind(holder))
    used = (image_column, *([holder] if in_file else []), *([key] if key else []))
    return Columns(
        image=image_column,
        target=holder if in_file else None,
        key=key or None,
        to_stored=to_stored,
        constant=(constant or "").encode() or None,
        meanings=class_names(schema, holder) if is_label and has_numbers else (),
        empty=tuple(name for name in used if types.is_null(kind(name))),
    )


def plain(type: pa.DataType) -> pa.DataType:
    """The type of the values, whatever they are encoded as."""
    while True:
        if isinstance(type, pa.BaseExtensionType):
            type = type.storage_type
        elif types.is_dictionary(type):
            type = type.value_type
        else:
            return type


def nested(type: pa.DataType, path: str) -> pa.DataType | None:
    """The type at a path inside a struct, None where there is none."""
    if not path:
        return type
    if not types.is_struct(type):
        return None
    fields = {field.name: plain(field.type) for field in type}
    if path in fields:
        return fields[path]
    cuts = [at for at, letter in enumerate(path) if letter == "." and path[:at] in fields]
    return nested(fields[path[: cuts[0]]], path[cuts[0] + 1 :]) if cuts else None


def is_binary(type: pa.DataType) -> bool:
    return any(
        check(type)
        for check in (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    )


def is_text(type: pa.DataType) -> bool:
    """Text, or bytes that may be text."""
    return is_binary(type) or any(
        check(type) for check in (types.is_string, types.is_large_string, types.is_string_view)
    )


def holds_image(type: pa.DataType) -> bool:
    if types.is_struct(type):
        return any(field.name == "bytes" and holds_image(plain(field.type)) for field in type)
    return is_binary(type) or types.is_null(type)


def holds_target(type: pa.DataType | None, *, is_label: bool) -> bool:
    if type is None:
        return False
    if types.is_null(type) or is_text(type):
        return True
    if is_label:
        numbers = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
        return any(check(type) for check in numbers)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(check(type) for check in lists) and is_text(plain(type.value_type))


def holds_key(type: pa.DataType) -> bool:
    return is_text(type) or types.is_integer(type) or types.is_decimal(type)


def key_text(value: Any, url: str, column: str, row: int) -> str:
    """Raises ShardError where a row has no key."""
    if value is None:
        raise ShardError(f"{url}: row {row} has no key in column '{column}'; every example needs one")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return str(value)


def hive_value(url: str, column: str) -> str | None:
    """The value of a column that folders of the file's path name, as in `label=cat/part-0.parquet`: "" for null."""
    for part in reversed(without_query(url).split("/")[:-1]):
        name, equals, value = part.partition("=")
        if equals and unquote(name) == column:
            return "" if value == HIVE_NULL else unquote(value)
    return None


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The names of the classes in the metadata that Hugging Face's datasets writes, () where there are none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        feature = about["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else ()
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(names) if all(isinstance(name, str) for name in names) else ()
