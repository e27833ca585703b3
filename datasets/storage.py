"""Listing and reading files on any file system that fsspec opens. Writing is in writing.py.

No other modules call fsspec. An operation that fails is retried where that can help. If it still fails, whatever the file
system raised becomes a StorageError of one line: the exceptions of botocore, aiohttp and gcsfs are not all OSErrors. A
missing file is no failure of the storage: it is a FileNotFoundError.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from glob import escape
from glob import glob as local_glob
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from ..errors import CurateError, ReadError, StorageError
from ..errors import without_secrets as without_secrets  # callers look for it where URLs are opened
from .fetching import FetchedAhead

T = TypeVar("T")
Entry = dict[str, Any]
"""What a file system says of a file: its own `size`, `type` and times."""

PAUSES = (0.1, 1.0)
# A store's file of at most so many bytes is fetched whole where parts of it are asked for: one request is faster than three.
SMALL_BYTES = 1 << 18
# Errors that a retry does not change.
LASTING = (CurateError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
# A file that was written this long ago has another time if it is written to again.
SETTLED_SECONDS = 3.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path in it. A path without a protocol is local, whatever its characters."""
    if url.startswith("pipe:"):
        raise StorageError(
            f"{url}: pipe: runs a command, which is not supported; give the URL itself, such as s3://, gs:// or https://"
        )
    if "://" not in url:
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(url))
    try:
        fs, path = url_to_fs(url)
    except Exception as e:  # an unknown protocol, a missing package, missing credentials
        raise StorageError(f"{url}: cannot open this kind of URL: {e}") from e
    return fs, str(path)


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def join_url(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


def without_query(url: str) -> str:
    """A URL's path; a local path may hold any character."""
    return url.split("?")[0] if "://" in url else url


def full_url(url: str) -> str:
    """The URL as listings give it; for a local file its absolute path."""
    fs, path = filesystem(url)
    return _url(fs, path)


def _url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def attempt(do: Callable[[], T]) -> T:
    """Retry on transient errors, three attempts at most. The operation must be idempotent."""
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


def reason(error: Exception) -> str:
    """The system's own message."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _read(url: str, ask: Callable[[], T]) -> T:
    """Run an operation that reads. Raises ReadError where it fails, FileNotFoundError where the file does not exist."""
    try:
        return attempt(ask)
    except (CurateError, FileNotFoundError):
        raise
    except NotADirectoryError as e:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from e
    except Exception as e:
        if isinstance(e, PermissionError):
            way_out = "allow this user to read it"
        elif isinstance(e, IsADirectoryError):
            way_out = "name a file"
        elif "Credential" in type(e).__name__:
            way_out = "set the store's credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        else:
            way_out = "run again when its storage answers"
        raise ReadError(f"{url}: cannot be read ({reason(e)}); {way_out}") from e


class Reader:
    """An open file. Its reads are retried as its opening was, and raise ReadError."""

    def __init__(self, url: str, file: Any, read_whole: Callable[[], bytes]) -> None:
        self._url, self._file, self._read_whole = url, file, read_whole

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()

        def again() -> bytes:
            if self._file.tell() != start:
                self._file.seek(start)
            try:
                return bytes(self._file.read(size))
            except ValueError as e:
                if "range requests" not in str(e):
                    raise
            self._file = io.BytesIO(self._read_whole())  # a server that gives a file from its beginning alone
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


def open_read(url: str, *, parts: bool = False, whole: bool = False) -> Reader:
    """A binary file for reading. Raises FileNotFoundError.

    For `parts` of a file, such as columns, a store is asked for the bytes of each read alone; of a file that is read `whole`,
    from its beginning to its end, what comes next is fetched while something is used; else as the file system has it.
    """
    fs, path = filesystem(url)
    parts = parts and not isinstance(fs, LocalFileSystem)

    def open_again() -> Any:
        _no_pipe(fs, path, url)
        file = fs.open(path, "rb", **({"cache_type": "none"} if parts else {}))
        size = getattr(file, "size", 0)
        # Without a size it is a stream, which can neither seek nor read on after a failure.
        if size is None or (parts and size <= SMALL_BYTES):
            file.close()
            return io.BytesIO(fs.cat_file(path))
        if whole and isinstance(file, AbstractBufferedFile) and size:
            return FetchedAhead(file._fetch_range, size)
        return file

    return Reader(url, _read(url, open_again), lambda: bytes(fs.cat_file(path)))


def read_bytes(url: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    _no_pipe(fs, path, url)
    return bytes(_read(url, lambda: fs.cat_file(path)))


def _no_pipe(fs: Any, path: str, url: str) -> None:
    """Raises ReadError for what would be waited for without end."""
    if isinstance(fs, LocalFileSystem) and _local_entry(path)["type"] == "other":
        raise ReadError(f"{url}: is a pipe or a device; name a file")


def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, each (first byte, bytes), which a store is asked for together. A part that the file does not have is
    shorter. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with open_read(url) as file:
            return [file.read(size) for first, size in ranges if file.seek(first) >= 0]
    firsts, ends = [first for first, _ in ranges], [first + size for first, size in ranges]
    parts = _read(url, lambda: fs.cat_ranges([path] * len(ranges), firsts, ends, on_error="raise"))
    # A web server that knows no ranges gives the whole file.
    return [bytes(p[a:b] if len(p) > b - a else p) for p, a, b in zip(parts, firsts, ends, strict=True)]


def size_of(url: str) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    if "://" not in url:
        return _read(url, lambda: os.stat(url).st_size)
    fs, path = filesystem(url)
    size = _read(url, lambda: fs.info(path)).get("size")
    if size is None:
        raise ReadError(f"{url}: its server does not say how large it is; copy it to a disk or an object store")
    return int(size)


def exists(url: str) -> bool:
    """Whether a file exists. Raises ReadError where the storage does not answer."""
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
    """Base names in a folder, sorted; empty where the folder does not exist. Cached listings are never used."""
    return sorted(_base_name(str(path)) for path in _list(folder, detail=False))


def list_times(folder: str) -> dict[str, float | None]:
    """Base names in a folder with the time (seconds since 1970) when they were written, None where it is not known."""
    return {_base_name(str(entry["name"])): written_at(entry) for entry in _list(folder, detail=True)}


class Version(NamedTuple):
    """What a listing says of a file's content: bytes, the time of writing, and what the store calls its version."""

    size: int
    written: float | None
    tag: str

    @property
    def is_known(self) -> bool:
        """Whether another content would show. A file system's clock may tick too slowly for a file written just now."""
        return bool(self.tag) or (self.written is not None and time.time() - self.written > SETTLED_SECONDS)


def list_versions(folder: str) -> dict[str, Version]:
    """Base names of the files in a folder with their versions; empty where the folder does not exist."""
    return {
        _base_name(str(entry["name"])): Version(int(entry.get("size") or 0), written_at(entry), _tag(entry))
        for entry in _list(folder, detail=True)
        if entry.get("type") != "directory"
    }


def list_entries(folder: str) -> dict[str, Entry]:
    """The entries of a folder, by full URL, sorted; empty where the folder does not exist."""
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
    """What a pattern with wildcards matches, by full URL, sorted. A folder whose own name has brackets is found too."""
    fs, path = filesystem(pattern)
    fs.invalidate_cache()
    path = _read(pattern, lambda: _escaped_folders(fs, path))
    if isinstance(fs, LocalFileSystem):  # fsspec's own does not follow links to folders
        names = _read(pattern, lambda: local_glob(path, recursive=True, include_hidden=True))
        return {name.rstrip("/"): _local_entry(name) for name in sorted(names)}
    found = _read(pattern, lambda: fs.glob(path, detail=True))
    return {_url(fs, p): found[p] for p in sorted(found)}


def _escaped_folders(fs: Any, path: str) -> str:
    """A pattern in which the brackets of folders that exist stand for themselves."""
    parts = path.split("/")
    for i, part in enumerate(parts[:-1]):
        if "[" in part and fs.isdir("/".join(parts[: i + 1])):
            continue
        if any(mark in part for mark in "*?["):
            return "/".join([*map(escape, parts[:i]), *parts[i:]])
    return "/".join([*map(escape, parts[:-1]), parts[-1]])


def _local_entry(path: str) -> Entry:
    try:
        about = os.stat(path)
    except OSError:  # a link to nothing, or deleted just now
        about = os.lstat(path) if os.path.lexists(path) else os.stat_result((0,) * 10)
        return {"name": path, "size": 0, "type": "file", "mtime": about.st_mtime}
    kind = "directory" if S_ISDIR(about.st_mode) else "file" if S_ISREG(about.st_mode) else "other"
    return {"name": path, "size": about.st_size, "type": kind, "mtime": about.st_mtime}


def list_below(folder: str, repeated: list[str] | None = None) -> dict[str, tuple[str, Entry]]:
    """Every file below a folder: by its path from there, sorted, its full URL and its entry.

    Links to folders are followed. Those that lead to a folder that is listed already, or to one above, are added to
    `repeated` instead.
    """
    fs, path = filesystem(folder)
    root = path.rstrip("/")
    if isinstance(fs, LocalFileSystem):
        links: list[str] = []
        found = _read(folder, lambda: _walk(root, links))
        if repeated is not None:
            repeated += links
    else:
        found = _read(folder, lambda: fs.find(path, detail=True))
    return {p[len(root) + 1 :]: (_url(fs, p), found[p]) for p in sorted(found)}


def _walk(root: str, repeated: list[str]) -> dict[str, Entry]:
    """Folders come before the links to them, so that what is passed over does not depend on names."""
    repeated.clear()
    found: dict[str, Entry] = {}
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        start = waiting.pop(0)
        real = os.path.realpath(start)
        if start != root and (real in seen or f"{os.path.realpath(root)}/".startswith(f"{real}/")):
            repeated.append(start)
            continue
        for folder, folders, names in os.walk(start, onerror=_unless_gone):
            seen.add(f"{real}{folder[len(start) :]}")
            linked = sorted(name for name in folders if os.path.islink(os.path.join(folder, name)))
            waiting += [os.path.join(folder, name) for name in linked]
            folders[:] = [
                name
                for name in folders
                if name not in linked and f"{real}{os.path.join(folder, name)[len(start) :]}" not in seen
            ]
            found |= {path: _local_entry(path) for path in (os.path.join(folder, name) for name in names)}
    return found


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def written_at(entry: Entry) -> float | None:
    """When a listed file was written, in seconds since 1970. Each file system of fsspec has its own name for it."""
    found = next(
        (entry[k] for k in ("mtime", "LastModified", "last_modified", "updated", "created") if k in entry), None
    )
    if isinstance(found, datetime):
        return found.timestamp()
    return float(found) if isinstance(found, int | float) else None


def version_of(url: str) -> tuple[str | None, float | None]:
    """(what the store calls a file's version: its ETag; when it was written), each None where the store has none.

    Raises FileNotFoundError and ReadError.
    """
    fs, path = filesystem(url)
    entry = _read(url, lambda: fs.info(path))
    return _tag(entry) or None, written_at(entry)


def _tag(entry: Entry) -> str:
    return next((str(entry[k]) for k in ("ETag", "etag", "md5Hash", "crc32c") if entry.get(k)), "")
