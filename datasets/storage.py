"""Files wherever fsspec reaches: listing, whole reads, and writes that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from datetime import datetime
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..errors import ShardError, TableError


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path in it."""
    try:
        fs, path = url_to_fs(url)
    except (ImportError, ValueError) as e:
        raise ShardError(f"{url}: cannot open this kind of URL: {e}") from None
    return fs, str(path)


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def join_url(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


def open_read(url: str) -> Any:
    """A binary file object for sequential reading. Raises ShardError where the file is not there."""
    try:
        return fsspec.open(url, "rb").open()
    except FileNotFoundError:
        raise ShardError(f"{url}: no such file") from None


def read_bytes(url: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def list_names(folder: str) -> list[str]:
    """Base names in a folder, sorted; empty where there is none. Cached listings are never used."""
    fs, path = filesystem(folder)
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(os.path.basename(str(entry).rstrip("/")) for entry in entries)


def list_times(folder: str) -> dict[str, float | None]:
    """Base names in a folder with the seconds (since 1970) at which they were written; None where nobody keeps that."""
    fs, path = filesystem(folder)
    fs.invalidate_cache()
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {os.path.basename(str(entry["name"]).rstrip("/")): _written(entry) for entry in entries}


def _written(entry: dict[str, Any]) -> float | None:
    """Every filesystem of fsspec has a name of its own for it."""
    found = next(
        (entry[k] for k in ("mtime", "LastModified", "last_modified", "updated", "created") if k in entry), None
    )
    if isinstance(found, datetime):
        return found.timestamp()
    return float(found) if isinstance(found, int | float) else None


def make_folder(folder: str) -> None:
    """Create a folder and prove that it can be written. Raises TableError where it cannot."""
    fs, path = filesystem(folder)
    probe = f"{path.rstrip('/')}/.writable-{uuid.uuid4().hex}"
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)
    except OSError as e:
        raise TableError(f"{folder}: cannot be written ({e.strerror or e}); choose another --out") from None


def write_atomically(url: str, content: bytes) -> None:
    """The file appears whole or not at all: temporary name and rename on local disks, one put on object stores."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, content)
        return
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex[:8]}.partial")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        raise TableError(f"{url}: cannot be written ({e.strerror or e}); free space or choose another --out") from None
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def remove_partials(folder: str) -> None:
    """Delete what killed writers left of their unfinished files, in a local folder and those below it."""
    for path, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(".partial"):
                with suppress(FileNotFoundError):  # its writer lives, and was done just now
                    os.unlink(os.path.join(path, name))


def remove(url: str) -> None:
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm_file(path)
