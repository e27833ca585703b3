import errno
import os
import subprocess
import sys
from typing import ClassVar

import pytest
from curate.datasets import storage
from curate.datasets.storage import (
    exists,
    glob,
    is_folder,
    list_below,
    list_entries,
    list_names,
    list_times,
    make_folder,
    open_read,
    read_bytes,
    remove,
    remove_partials,
    size_of,
    write_atomically,
)
from curate.errors import ReadError, ShardError, StorageError, TableError, WriteError
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem


class ClientError(Exception):
    """As botocore, aiohttp and gcsfs have them: no OSError."""


class Moody(AbstractFileSystem):
    """A real file system that fails as many times as it was told to: with the number of an OSError, or with an error."""

    protocol = "moody"
    root_marker = "/"
    failures: ClassVar[list[int | Exception]] = []
    calls: ClassVar[list[str]] = []
    local = LocalFileSystem()

    def _maybe_fail(self, call):
        self.calls.append(call)
        if self.failures:
            failure = self.failures.pop()
            raise OSError(failure, os.strerror(failure)) if isinstance(failure, int) else failure

    def cat_file(self, path, **options):
        self._maybe_fail("cat")
        return self.local.cat_file(self._strip_protocol(path))

    def info(self, path, **options):
        self._maybe_fail("info")
        return self.local.info(self._strip_protocol(path))

    def ls(self, path, detail=True, **options):
        self._maybe_fail("ls")
        return self.local.ls(self._strip_protocol(path), detail=detail)

    def pipe_file(self, path, value, **options):
        self._maybe_fail("pipe")
        self.local.pipe_file(self._strip_protocol(path), value)

    def rm_file(self, path):
        self._maybe_fail("rm")
        self.local.rm_file(self._strip_protocol(path))

    def makedirs(self, path, exist_ok=False):
        self._maybe_fail("makedirs")
        self.local.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def isdir(self, path):
        self._maybe_fail("isdir")
        return self.local.isdir(self._strip_protocol(path))

    def _open(self, path, mode="rb", **options):
        self._maybe_fail("open")
        return MoodyFile(self, self.local.open(self._strip_protocol(path), mode))


class MoodyFile:
    """Loses bytes where it fails, as a broken connection does."""

    def __init__(self, fs, file):
        self._fs, self._file = fs, file

    def read(self, size=-1):
        data = self._file.read(size)
        self._fs._maybe_fail("read")
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def moody(tmp_path, monkeypatch):
    register_implementation("moody", Moody, clobber=True)
    monkeypatch.setattr(Moody, "failures", [])
    monkeypatch.setattr(Moody, "calls", [])
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    return f"moody://{tmp_path}/file"


def test_what_fails_twice_is_asked_a_third_time(moody, tmp_path):
    Moody.failures[:] = [errno.EIO] * 2
    write_atomically(moody, b"content")
    assert Moody.calls == ["pipe"] * 3
    for ask, answer in ((read_bytes, b"content"), (exists, True)):
        Moody.failures[:] = [errno.EIO] * 2
        assert ask(moody) == answer
    Moody.failures[:] = [errno.EIO] * 2
    assert list_names(f"moody://{tmp_path}") == ["file"]
    Moody.failures[:] = [errno.EIO] * 2
    remove(moody)
    assert not exists(moody)
    remove(moody)


def test_what_fails_for_good_is_one_line_and_never_a_false_answer(moody):
    write_atomically(moody, b"content")
    for ask in (read_bytes, exists, lambda url: list_names(url.rsplit("/", 1)[0])):
        Moody.failures[:] = [errno.EIO] * 3
        with pytest.raises(ReadError, match=r"moody://.*cannot be read \(Input/output error\)"):
            ask(moody)
    Moody.failures[:] = [errno.EIO] * 3
    with pytest.raises(WriteError, match=r"moody://.*cannot be written \(Input/output error\)"):
        write_atomically(moody, b"other")
    assert read_bytes(moody) == b"content"


ASKED = {
    "cat": read_bytes,
    "info": size_of,
    "exists": exists,
    "isdir": is_folder,
    "names": lambda url: list_names(url.rsplit("/", 1)[0]),
    "times": lambda url: list_times(url.rsplit("/", 1)[0]),
    "entries": lambda url: list_entries(url.rsplit("/", 1)[0]),
    "glob": lambda url: glob(url.rsplit("/", 1)[0] + "/*"),
    "below": lambda url: list_below(url.rsplit("/", 1)[0]),
    "open": open_read,
    "read": lambda url: open_read(url).read(),
}
DONE = {
    "written": lambda url: write_atomically(url, b"other"),
    "removed": remove,
    "a folder": lambda url: make_folder(url.rsplit("/", 1)[0]),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_file_systems_own_kinds_of_errors_are_tried_again_and_become_a_read_error(moody, ask):
    write_atomically(moody, b"content")
    answer = ask(moody)
    if ask is not open_read:
        Moody.failures[:] = [ClientError("SlowDown")] * 2
        assert ask(moody) == answer
    Moody.failures[:] = [ClientError("An error\noccurred (SlowDown)")] * 3
    with pytest.raises(ReadError) as caught:
        ask(moody)
    told = "cannot be read (ClientError: An error occurred (SlowDown)); run again when its storage answers"
    assert str(caught.value).endswith(told)
    assert not isinstance(caught.value, ShardError)


@pytest.mark.parametrize("do", DONE.values(), ids=DONE)
def test_a_file_systems_own_kinds_of_errors_become_a_write_error(moody, do):
    write_atomically(moody, b"content")
    Moody.failures[:] = [ClientError("SlowDown")] * 2
    do(moody)
    Moody.failures[:] = [ClientError("SlowDown")] * 3
    with pytest.raises(
        WriteError, match=r"cannot be (written|removed) \(ClientError: SlowDown\); run again when"
    ) as caught:
        do(moody)
    assert not isinstance(caught.value, TableError)


def test_an_open_file_reads_on_where_it_stood_when_a_read_failed(moody):
    content = bytes(range(256)) * 40
    write_atomically(moody, content)
    with open_read(moody) as file:
        got = b""
        for failures in (0, 1, 2, 0, 2):
            Moody.failures[:] = [ClientError("connection lost")] * failures
            got += file.read(1000)
        assert got == content[:5000]
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]


def test_what_is_not_there_is_told_from_storage_that_fails(moody, tmp_path):
    (tmp_path / "plain").write_bytes(b"x")
    for url in (f"moody://{tmp_path}/none", f"{tmp_path}/none", f"{tmp_path}/plain/below"):
        for ask in (read_bytes, size_of, open_read):
            with pytest.raises(FileNotFoundError):
                ask(url)
        assert not exists(url)
        assert list_names(url) == [] and list_times(url) == list_entries(url) == glob(f"{url}/*") == {}
        remove(url)


def test_a_url_of_an_unknown_kind_is_one_line(tmp_path):
    with pytest.raises(StorageError, match=r"^nosuch://x: cannot open this kind of URL: Protocol not known: nosuch$"):
        read_bytes("nosuch://x")


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOENT, "make the folder or bucket that it is to lie in"),
        (errno.EACCES, "allow this user to write there"),
        (errno.EROFS, "allow this user to write there"),
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.ENOTDIR, "move the file that is in its way"),
    ],
)
def test_what_a_second_attempt_would_not_change_is_not_attempted_again(moody, number, way_out):
    Moody.failures[:] = [number] * 3
    with pytest.raises(WriteError) as caught:
        write_atomically(moody, b"content")
    assert str(caught.value) == f"{moody}: cannot be written ({os.strerror(number)}); {way_out}"
    assert Moody.calls == ["pipe"]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from curate.datasets import storage\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.write_atomically(sys.argv[1], b'half')\n"
    )
    (tmp_path / "_failures").mkdir()
    for name in ("a.parquet", "_failures/a.parquet"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name])
    (tmp_path / "whole.parquet").write_bytes(b"whole")
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert len([name for name in left if name.endswith(".partial")]) == 2
    remove_partials(str(tmp_path))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole.parquet"]
