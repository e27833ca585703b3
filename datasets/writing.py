"""Files and folders that appear whole or not at all, and are synced to the disk before they appear. Who may read them is as
the umask has it, whatever wrote them.

The partial files of a killed writer have names that start with `.` and end with `.partial`; `remove_partials` finds them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from fsspec.implementations.local import LocalFileSystem

from ..errors import CurateError, WriteError
from .storage import FULL, attempt, filesystem, join_url, reason

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def write_whole(url: str | Path, content: bytes) -> None:
    """Write a file. On object stores each file is written in one request, so nobody reads half a file. Raises WriteError."""
    fs, path = filesystem(str(url))

    def write() -> None:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, content)
            return
        with _in_place_of(path) as partial:
            partial.write_bytes(content)

    _change(url, write)


@contextmanager
def whole_file(url: str | Path) -> Iterator[Path]:
    """A local path to write a file to. The file is moved to `url` when the block ends, and deleted if the block fails.

    The path has another ending than `url`. Raises WriteError where the file cannot be written; other errors pass.
    """
    fs, path = filesystem(str(url))
    with write_errors(url):
        if isinstance(fs, LocalFileSystem):
            with _in_place_of(path) as partial:
                yield partial
            return
        with TemporaryDirectory(prefix=".", suffix=".partial") as scratch:
            partial = Path(scratch, "file")
            yield partial
            _change(url, lambda: fs.put_file(str(partial), path))


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A new, empty local folder to fill. It replaces `folder` when the block ends, as `whole_file` does for a file.

    For one writer at a time: partial folders that a killed writer left for the same `folder` are removed first.
    """
    target = _linked(str(folder))
    with write_errors(folder), _partial_of(target) as partial:
        for name in os.listdir(target.parent):
            if re.fullmatch(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial", name):
                _delete(target.with_name(name))
        partial.mkdir()
        mode = partial.stat().st_mode & 0o666
        yield partial
        for below, _, names in os.walk(partial):
            for name in names:
                os.chmod(os.path.join(below, name), mode)
                _sync(os.path.join(below, name))
            _sync(below)
        with _partial_of(target) as replaced:
            if target.exists():
                os.replace(target, replaced)
            try:
                os.replace(partial, target)
            except OSError:
                if replaced.exists():
                    os.replace(replaced, target)
                raise
            _sync(target.parent)


@contextmanager
def write_errors(url: str | Path) -> Iterator[None]:
    """Turn errors of writing to `url` inside the block into a WriteError. Other errors pass.

    An interruption that torch hides behind an error of its own is raised as what it is.
    """
    try:
        yield
    except CurateError:
        raise
    except Exception as e:
        # torch.save closes its file on the way out, and complains that what was written is not whole.
        if e.__context__ is not None and not isinstance(e.__context__, Exception):
            raise e.__context__ from None
        cause = _os_error(e)
        if cause is None:
            raise
        raise _write_error(url, cause) from e


def lock(file: IO[str]) -> str:
    """Lock an open file until it is closed. Where the file system has no locks, as some network ones, returns that reason.

    Raises BlockingIOError where another process has the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
        return f"this file system has no locks ({e.strerror})"
    return ""


def make_folder(folder: str) -> None:
    """Create a folder, and check that it can be written to. Raises WriteError where it cannot."""
    fs, path = filesystem(folder)
    probe = join_url(folder, f".writable.{uuid.uuid4().hex[:8]}.partial")
    _change(folder, lambda: fs.makedirs(path, exist_ok=True))
    _change(folder, lambda: fs.pipe_file(filesystem(probe)[1], b""))
    remove(probe)


def remove(url: str) -> None:
    """Delete a file if it exists. Raises WriteError where that cannot be done."""
    fs, path = filesystem(url)

    def delete() -> None:
        with suppress(FileNotFoundError, NotADirectoryError):  # it is already gone
            fs.rm_file(path)

    _change(url, delete, "removed")


def remove_partials(folder: str | Path) -> None:
    """Delete the unfinished files and folders of killed writers, in a local folder and those below it."""
    for below, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if _is_partial(name):
                _delete(Path(below, name))
        folders[:] = [name for name in folders if not _is_partial(name)]


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


def _change(url: str | Path, do: Callable[[], object], what: str = "written") -> None:
    """Run an operation that writes. Raises WriteError for any failure."""
    try:
        attempt(do)
    except CurateError:
        raise
    except Exception as e:
        raise _write_error(url, e, what) from e


def _write_error(url: str | Path, error: Exception, what: str = "written") -> WriteError:
    number = getattr(error, "errno", None)
    if number in FULL:
        way_out = "free space"
    elif isinstance(error, PermissionError) or number == errno.EROFS:
        way_out = "allow this user to write there"
    elif isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        way_out = "move the file that is in its way"
    elif isinstance(error, FileNotFoundError):
        way_out = "create the folder or bucket that it belongs in"
    else:
        way_out = "run again when its storage answers"
    return WriteError(f"{url}: cannot be {what} ({reason(error)}); {way_out}")


def _os_error(error: Exception) -> OSError | None:
    """The system's error behind an error: torch raises another one on top, safetensors gives its number alone."""
    found = error.__context__ if isinstance(error, RuntimeError) else error
    told = re.search(r"(?:\(os error |\bOs \{ code: )(\d+)", str(error))  # as Rust spells it, in short and in full
    # Pillow calls a damaged image an OSError; it has no number.
    number = found.errno if isinstance(found, OSError) else told and int(told[1])
    return OSError(number, os.strerror(number)) if number else None


@contextmanager
def _in_place_of(path: str) -> Iterator[Path]:
    """A temporary name for a local file, renamed to `path` once its content is synced to the disk."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise WriteError(f"{path}: is a pipe or a device, and would be replaced by a file; give the name of a file")
    target = _linked(path)
    with _partial_of(target) as partial:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        os.chmod(partial, mode)  # some writers, safetensors for one, leave a file that its owner alone reads
        _sync(partial)
        os.replace(partial, target)
        _sync(target.parent)


def _linked(path: str) -> Path:
    """What a link leads to, as `open` has it: the link stays, and what it leads to is replaced."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


@contextmanager
def _partial_of(target: Path) -> Iterator[Path]:
    """A name next to `target` that no other writer has. Whatever has that name at the end is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
    finally:
        _delete(partial)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # its writer may still run, and have finished just now


def _sync(path: str | Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk and survives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no folders
            raise
    finally:
        os.close(handle)
