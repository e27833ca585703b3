"""What an entry of curate.toml does not say and its files do: their format, and the names of the classes."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Sequence
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CurateError, SpecError, StorageError, printable
from .columns import class_names
from .hidden import is_hidden
from .patterns import (
    expand_braces,
    format_of_folder,
    has_wildcard,
    in_folder,
    is_shard,
    is_shards_folder,
    matching,
)
from .storage import is_folder, list_entries, open_read, read_bytes, without_query

# So many members of a tar say what its examples are.
FIRST_MEMBERS = 64
OLD_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff")
# The endings of the formats that decoding.py reads.
IMAGE_EXTENSIONS = (
    *OLD_EXTENSIONS,
    *("jpe", "jfif", "apng", "avif", "pbm", "pgm", "pnm", "dib", "jp2", "j2k", "jpx", "jpf", "j2c", "jpc"),
)


def guess_format(pattern: str) -> Literal["webdataset", "parquet", "folder"]:
    """From the ending: .tar (or .tar.gz) is webdataset, .parquet parquet. Anything else is a folder: of images, or where
    it has none and holds such shards, of those."""
    for plain in (pattern.rstrip("}"), pattern.split("?")[0].rstrip("}")):  # a wildcard, or a URL's query
        if is_shard(plain, "webdataset"):
            return "webdataset"
        if is_shard(plain, "parquet"):
            return "parquet"
    try:
        is_known = bool(pattern) and not has_wildcard(pattern) and "{" not in pattern and is_folder(pattern)
        found = format_of_folder(pattern, IMAGE_EXTENSIONS) if is_known else "folder"
    except StorageError:  # said where the shards are listed
        found = "folder"
    return "parquet" if found == "parquet" else "webdataset" if found == "webdataset" else "folder"


def classes_in_folders(dataset: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of an image folder's classes: its folders, sorted; () where they are numbers, which then are labels."""
    roots = [root for pattern in patterns for root in expand_braces(dataset, pattern)]
    names = sorted({name for root in roots for name in class_folders(root)})
    return () if all(name.isdecimal() for name in names) else tuple(names)


def class_folders(root: str) -> tuple[str, ...]:
    """The folders in a folder, links to folders too, sorted."""
    entries = list_entries(root) if is_folder(root) else {}
    names = [printable(url.rstrip("/").rsplit("/", 1)[-1]) for url, entry in entries.items() if _is_folder(url, entry)]
    return tuple(sorted(name for name in names if not is_hidden(name)))


def _is_folder(url: str, entry: dict[str, object]) -> bool:
    return entry["type"] == "directory" or (bool(entry.get("islink")) and is_folder(url))


def classes_in_files(dataset: str, pattern: str, column: str) -> tuple[str, ...]:
    """The names that the first Parquet file of a pattern gives to the numbers of a column, () where it gives none.

    Raises FileNotFoundError, ShardError, StorageError.
    """
    url = _first_file(dataset, pattern, "parquet")
    if not url:
        return ()
    with open_read(url) as file:
        try:
            return class_names(pq.read_schema(file), column)
        except (pa.ArrowException, OSError):
            return ()


def _first_file(dataset: str, pattern: str, format: str) -> str:
    """The first file of a pattern, empty where it has none. One that is named need not exist."""
    url = expand_braces(dataset, pattern)[0]
    if has_wildcard(url):
        return next(iter(matching(url, dataset)), "")
    if is_shards_folder(url, format):
        return next(iter(in_folder(url, dataset, format)), "")
    return url


def fields_of_first(dataset: str, pattern: str, format: str) -> frozenset[str]:
    """The endings of the first members of a pattern's first tar, or the columns of its first Parquet file. None where that is
    no file of this machine, or cannot be read: what is wrong with it is said where the shards are read."""
    if format == "folder" or "://" in pattern:
        return frozenset()
    try:
        url = _first_file(dataset, pattern, format)
        if not url:
            return frozenset()
        if format == "parquet":
            return frozenset(pq.read_schema(url).names)
        with tarfile.open(url) as tar:
            names = [member.name.rpartition("/")[2] for member in islice(tar, FIRST_MEMBERS)]
    except (CurateError, OSError, EOFError, zlib.error, tarfile.TarError, pa.ArrowException):
        return frozenset()
    return frozenset(name.partition(".")[2].lower() for name in names if not is_hidden(name))


def classes_of_file(dataset: str, url: str) -> tuple[str, ...]:
    """The classes in a text file, one a line, or in a JSON list. Raises SpecError, StorageError."""
    where = f"data set '{dataset}': classes = {url}"
    try:
        text = read_bytes(url).decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(
            f"{where}: no such file; give names, how many there are, or a file with a name a line"
        ) from None
    except UnicodeDecodeError:
        raise SpecError(f"{where}: not UTF-8; save it as UTF-8, a name a line") from None
    if not without_query(url).lower().endswith(".json"):
        names = [line.strip() for line in text.rstrip().split("\n")]
    else:
        try:
            names = json.loads(text)
        except ValueError as e:
            raise SpecError(f"{where}: not valid JSON: {e}") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SpecError(f"{where}: expected a JSON list of names")
    if not any(names):
        raise SpecError(f"{where}: no name in it; write a class's name a line")
    if "" in names:
        raise SpecError(f"{where}: line {names.index('') + 1} is empty; a class's number is its line's")
    return tuple(names)
