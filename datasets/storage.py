"""Files wherever fsspec reaches: listing, reading, and writes that appear whole or not at all.

The only module that calls fsspec. Whatever a file system raises (botocore, aiohttp and gcsfs have kinds that are no
OSError) is tried again, and in the end becomes a StorageError of one line. That nothing is there is no failure of the
storage: it is a FileNotFoundError.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..errors import CurateError, ReadError, StorageError, WriteError

T = TypeVar("T")
Entry = dict[str, Any]
"""What a file system says of a file: its own `size`, `type` and times."""

PAUSES = (0.1, 1.0)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError)
# What another attempt a second later would not change.
LASTING = (CurateError, FileNotFoundError, PermissionError, *IN_THE_WAY)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path in it."""
    try:
        fs, path = url_to_fs(url)
    except Exception as e:  # an unknown protocol, a package that is missing, credentials that are
        raise StorageError(f"{url}: cannot open this kind of URL: {e}") from e
    return fs, str(path)


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def join_url(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


def full_url(url: str) -> str:
    """The URL as listings give it; of a local file its absolute path."""
    fs, path = filesystem(url)
    return _url(fs, path)


def _url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _attempt(do: Callable[[], T]) -> T:
    """Do what may fail now and then, three times at most. It must be safe to do twice."""
    for pause in PAUSES:
        try:
            return do()
        except LASTING:
            raise
        except Exception as e:
            if getattr(e, "errno", None) in (*FULL, errno.EROFS):
                raise
            time.sleep(pause)
    return do()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _read(url: str, ask: Callable[[], T]) -> T:
    """Ask a file system. Raises ReadError where it fails, FileNotFoundError where nothing is there."""
    try:
        return _attempt(ask)
    except (CurateError, FileNotFoundError):
        raise
    except NotADirectoryError as e:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from e
    except Exception as e:
        if isinstance(e, PermissionError):
            way_out = "allow this user to read it"
        elif isinstance(e, IsADirectoryError):
            way_out = "name a file"
        else:
            way_out = "run again when its storage answers"
        raise ReadError(f"{url}: cannot be read ({_reason(e)}); {way_out}") from e


def _write(url: str, do: Callable[[], object], what: str = "written") -> None:
    """Have a file system change something. Raises WriteError."""
    try:
        _attempt(do)
    except CurateError:
        raise
    except Exception as e:
        raise _write_error(url, e, what) from e


def _write_error(url: str, error: Exception, what: str = "written") -> WriteError:
    number = getattr(error, "errno", None)
    if number in FULL:
        way_out = "free space"
    elif isinstance(error, PermissionError) or number == errno.EROFS:
        way_out = "allow this user to write there"
    elif isinstance(error, IN_THE_WAY):
        way_out = "move the file that is in its way"
    elif isinstance(error, FileNotFoundError):
        way_out = "make the folder or bucket that it is to lie in"
    else:
        way_out = "run again when its storage answers"
    return WriteError(f"{url}: cannot be {what} ({_reason(error)}); {way_out}")


class Reader:
    """An open file, read as patiently as it was opened. Its reads raise ReadError."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()

        def again() -> bytes:
            if self._file.tell() != start:
                self._file.seek(start)
            return bytes(self._file.read(size))

        return _read(self._url, again)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_read(url: str) -> Reader:
    """A binary file for reading. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    return Reader(url, _read(url, lambda: fs.open(path, "rb")))


def read_bytes(url: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    return bytes(_read(url, lambda: fs.cat_file(path)))


def size_of(url: str) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    if "://" not in url:
        return _read(url, lambda: os.stat(url).st_size)
    fs, path = filesystem(url)
    return int(_read(url, lambda: fs.info(path))["size"])


def exists(url: str) -> bool:
    """Whether a file is there. Storage that does not answer is no answer: raises ReadError."""
    fs, path = filesystem(url)
    try:
        _read(url, lambda: fs.info(path))
    except FileNotFoundError:
        return False
    return True


def is_folder(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(_read(url, lambda: fs.isdir(path)))


def list_names(folder: str) -> list[str]:
    """Base names in a folder, sorted; empty where there is none. Cached listings are never used."""
    return sorted(_base_name(str(path)) for path in _list(folder, detail=False))


def list_times(folder: str) -> dict[str, float | None]:
    """Base names in a folder with the seconds (since 1970) at which they were written; None where nobody keeps that."""
    return {_base_name(str(entry["name"])): written_at(entry) for entry in _list(folder, detail=True)}


def list_entries(folder: str) -> dict[str, Entry]:
    """What lies in a folder, by full URL, sorted; empty where there is none."""
    fs, _ = filesystem(folder)
    found = {_url(fs, str(entry["name"])): entry for entry in _list(folder, detail=True)}
    return dict(sorted(found.items()))


def _list(folder: str, *, detail: bool) -> list[Any]:
    fs, path = filesystem(folder)
    fs.invalidate_cache()
    try:
        return list(_read(folder, lambda: fs.ls(path, detail=detail)))
    except FileNotFoundError:
        return []


def _base_name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def glob(pattern: str) -> dict[str, Entry]:
    """What a pattern with wildcards matches, by full URL, sorted."""
    fs, path = filesystem(pattern)
    fs.invalidate_cache()
    found = _read(pattern, lambda: fs.glob(path, detail=True))
    return {_url(fs, p): found[p] for p in sorted(found)}


def list_below(folder: str) -> dict[str, tuple[str, Entry]]:
    """Every file below a folder: by its path from there, sorted, its full URL and its entry."""
    fs, path = filesystem(folder)
    start = len(path.rstrip("/")) + 1
    found = _read(folder, lambda: fs.find(path, detail=True))
    return {p[start:]: (_url(fs, p), found[p]) for p in sorted(found)}


def written_at(entry: Entry) -> float | None:
    """When a listed file was written, in seconds since 1970. Every filesystem of fsspec has its own name for it."""
    found = next(
        (entry[k] for k in ("mtime", "LastModified", "last_modified", "updated", "created") if k in entry), None
    )
    if isinstance(found, datetime):
        return found.timestamp()
    return float(found) if isinstance(found, int | float) else None


def make_folder(folder: str) -> None:
    """Create a folder and prove that it can be written. Raises WriteError where it cannot."""
    fs, path = filesystem(folder)
    probe = join_url(folder, f".writable-{uuid.uuid4().hex}")
    _write(folder, lambda: fs.makedirs(path, exist_ok=True))
    _write(folder, lambda: fs.pipe_file(filesystem(probe)[1], b""))
    remove(probe)


def write_atomically(url: str, content: bytes) -> None:
    """The file appears whole or not at all: temporary name and rename on local disks, one put on object stores."""
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    _write(url, lambda: _write_and_rename(path, content) if local else fs.pipe_file(path, content))


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
    """Delete a file where it is there. Raises WriteError where that cannot be done."""
    fs, path = filesystem(url)

    def delete() -> None:
        with suppress(FileNotFoundError, NotADirectoryError):  # not there is what was wanted
            fs.rm_file(path)

    _write(url, delete, "removed")
