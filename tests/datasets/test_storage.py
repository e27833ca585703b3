import errno
import os
import subprocess
import sys
from typing import ClassVar

import pytest
from curate.datasets import storage
from curate.datasets.storage import exists, list_names, read_bytes, remove, remove_partials, write_atomically
from curate.errors import ShardError, TableError
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem


class Moody(AbstractFileSystem):
    """A real file system that fails as many times as it was told to."""

    protocol = "moody"
    root_marker = "/"
    failures: ClassVar[list[int]] = []
    calls: ClassVar[list[str]] = []
    local = LocalFileSystem()

    def _maybe_fail(self, call):
        self.calls.append(call)
        if self.failures:
            number = self.failures.pop()
            raise OSError(number, os.strerror(number))

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
        with pytest.raises(ShardError, match=r"moody://.*cannot be read \(Input/output error\)"):
            ask(moody)
    Moody.failures[:] = [errno.EIO] * 3
    with pytest.raises(TableError, match=r"moody://.*cannot be written \(Input/output error\)"):
        write_atomically(moody, b"other")
    assert read_bytes(moody) == b"content"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_what_a_second_attempt_would_not_change_is_not_attempted_again(moody, number):
    Moody.failures[:] = [number] * 3
    with pytest.raises(TableError):
        write_atomically(moody, b"content")
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
