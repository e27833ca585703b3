"""Files wherever fsspec reaches: listing, whole reads, and writes that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..errors import ShardError, StorageError, TableError

T = TypeVar("T")
PAUSES = (0.1, 1.0)
# What another attempt a second later would not change.
LASTING = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def patiently(do: Callable[[], T]) -> T:
    """What a store fails at now and then is tried three times; whatever does it must be safe to do twice."""
    for pause in PAUSES:
        try:
            return do()
        except LASTING:
            raise
        except OSError as e:
            if e.errno in FULL:
                raise
            time.sleep(pause)
    return do()


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
        return answer(url, lambda: fsspec.open(url, "rb").open())
    except FileNotFoundError:
        raise ShardError(f"{url}: no such file") from None


def answer(url: str, ask: Callable[[], T]) -> T:
    """Ask a store, patiently. Raises StorageError where it fails, FileNotFoundError where nothing is there."""
    try:
        return patiently(ask)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as e:
        raise StorageError(f"{url}: cannot be read ({e.strerror or e}); run again when its storage answers") from None


def read_bytes(url: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    return bytes(answer(url, lambda: fs.cat_file(path)))


def exists(url: str) -> bool:
    """Whether a file is there; a store that does not answer is no answer."""
    fs, path = filesystem(url)
    try:
        answer(url, lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def list_names(folder: str) -> list[str]:
    """Base names in a folder, sorted; empty where there is none. Cached listings are never used."""
    fs, path = filesystem(folder)
    fs.invalidate_cache()
    try:
        entries = answer(folder, lambda: fs.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(os.path.basename(str(entry).rstrip("/")) for entry in entries)


def list_times(folder: str) -> dict[str, float | None]:
    """Base names in a folder with the seconds (since 1970) at which they were written; None where nobody keeps that."""
    fs, path = filesystem(folder)
    fs.invalidate_cache()
    try:
        entries = answer(folder, lambda: fs.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {os.path.basename(str(entry["name"]).rstrip("/")): written_at(entry) for entry in entries}


def written_at(entry: dict[str, Any]) -> float | None:
    """When a listed file was written, in seconds since 1970. Every filesystem of fsspec has its own name for it."""
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
        patiently(lambda: fs.makedirs(path, exist_ok=True))
        patiently(lambda: fs.pipe_file(probe, b""))
        remove(probe if is_local(folder) else fs.unstrip_protocol(probe))
    except OSError as e:
        raise TableError(f"{folder}: cannot be written ({e.strerror or e}); choose another --out") from None


def write_atomically(url: str, content: bytes) -> None:
    """The file appears whole or not at all: temporary name and rename on local disks, one put on object stores."""
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    try:
        patiently(lambda: _write_and_rename(path, content) if local else fs.pipe_file(path, content))
    except OSError as e:
        raise TableError(f"{url}: cannot be written ({e.strerror or e}); free space or choose another --out") from None


def _write_and_rename(path: str, content: bytes) -> None:
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex[:8]}.partial")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
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
    """Delete a file where it is there. Raises TableError where that cannot be done."""
    fs, path = filesystem(url)
    try:
        patiently(lambda: fs.rm_file(path))
    except (FileNotFoundError, NotADirectoryError):
        pass  # not there is what was wanted
    except OSError as e:
        raise TableError(f"{url}: cannot be removed ({e.strerror or e}); run again when its storage answers") from None
