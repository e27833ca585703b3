"""Files and folders that appear whole or not at all."""

import errno
import io
import os
import signal
import subprocess
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from curate.datasets import writing
from curate.datasets.storage import list_names
from curate.datasets.writing import (
    make_folder,
    remove,
    remove_partials,
    whole_file,
    whole_folder,
    write_errors,
    write_whole,
)
from curate.errors import SpecError, StoppedError, TableError, WriteError
from safetensors.torch import save_file
from support.disk import files_up_to
from support.moody import ClientError, Moody

DONE = {
    "written": lambda url: write_whole(url, b"other"),
    "removed": remove,
    "a folder": lambda url: make_folder(url.rsplit("/", 1)[0]),
}


@pytest.mark.parametrize("do", DONE.values(), ids=DONE)
def test_a_file_systems_own_kinds_of_errors_become_a_write_error(moody, do):
    write_whole(moody, b"content")
    Moody.failures[:] = [ClientError("SlowDown")] * 2
    do(moody)
    Moody.failures[:] = [ClientError("SlowDown")] * 3
    with pytest.raises(
        WriteError, match=r"cannot be (written|removed) \(ClientError: SlowDown\); run again when"
    ) as caught:
        do(moody)
    assert not isinstance(caught.value, TableError)


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOENT, "create the folder or bucket that it belongs in"),
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
        write_whole(moody, b"content")
    assert str(caught.value) == f"{moody}: cannot be written ({os.strerror(number)}); {way_out}"
    assert Moody.calls == ["pipe"]


def save_with_torch(path):
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(10_000)}, file)


WRITERS = {
    "bytes": lambda path: path.write_bytes(b"x" * 40_000),
    "parquet": lambda path: pq.write_table(pa.table({"a": [os.urandom(40_000)]}), path),
    "safetensors": lambda path: save_file({"a": torch.zeros(10_000)}, path),
    "torch": save_with_torch,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_disk_that_is_full_is_one_line_and_leaves_what_was_there(tmp_path, write):
    """Each library has its own kind of error for it, and some hide the reason."""
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(WriteError) as caught, files_up_to(4096), whole_file(path) as partial:
        write(partial)
    assert str(caught.value) == f"{path}: cannot be written (File too large); free space"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()
    with pytest.raises(WriteError), files_up_to(4096), whole_folder(tmp_path / "folder") as partial:
        write(partial / "new")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["file", "folder", "folder/old"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, lambda: StoppedError(signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interruption_in_the_middle_of_a_save_stays_one(tmp_path, stop):
    """torch closes its file on the way out, and raises a RuntimeError since that is not whole."""

    class Interrupted(io.BytesIO):
        def write(self, content):
            if self.tell() > 1000:
                raise stop()
            return super().write(content)

    with pytest.raises(type(stop())), whole_folder(tmp_path / "new"):
        torch.save({"a": torch.zeros(10_000)}, Interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [SpecError("ours"), ValueError("a bug"), OSError("a damaged image, as Pillow says it")]
)
def test_what_is_no_failure_to_write_passes_as_it_is_and_leaves_nothing(tmp_path, error):
    for whole in (whole_file, whole_folder):
        with pytest.raises(type(error)) as caught, whole(tmp_path / "new"):
            raise error
        assert caught.value is error
        assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_is_told(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def note_fsync(handle):
        calls.append(("on the disk", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def note_replace(source, target):
        calls.append(("named", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    here = tmp_path.name
    write_whole(tmp_path / "a", b"content")
    partial = calls[0][1]
    assert calls == [("on the disk", partial), ("named", "a"), ("on the disk", here)]
    calls.clear()
    with whole_folder(tmp_path / "b") as folder:
        (folder / "c").mkdir()
        (folder / "c/d").touch()
        (folder / "e").touch()
    assert calls[-2:] == [("named", "b"), ("on the disk", here)]
    assert sorted(calls[:-2]) == sorted(("on the disk", name) for name in (folder.name, "c", "d", "e"))


def test_a_new_folder_takes_the_old_ones_place(tmp_path):
    for content in ("one", "two"):
        with whole_folder(tmp_path / "below/folder") as partial:
            assert list(partial.iterdir()) == []
            (partial / content).write_text(content)
        assert [p.name for p in (tmp_path / "below/folder").iterdir()] == [content]
    assert [p.name for p in (tmp_path / "below").iterdir()] == ["folder"]


def _fifo(path):
    os.mkfifo(path)


def _device(path):
    os.symlink("/dev/null", path)


@pytest.mark.parametrize("make", [_fifo, _device])
@pytest.mark.parametrize("write", [lambda path: write_whole(path, b"x"), lambda path: _whole(path, b"x")])
def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path, make, write):
    path = tmp_path / "there"
    make(path)
    before = os.lstat(path)
    with pytest.raises(WriteError, match="there: is a pipe or a device"):
        write(path)
    assert os.lstat(path) == before
    assert os.listdir(tmp_path) == ["there"]


def _whole(path, content):
    with whole_file(path) as partial:
        partial.write_bytes(content)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    """As a curate.toml that is kept among other settings, and data on a larger disk."""
    for folder in ("here", "elsewhere/data"):
        (tmp_path / folder).mkdir(parents=True)
    os.symlink("../elsewhere/a.toml", tmp_path / "here/a.toml")  # to nothing, at first
    os.symlink("../elsewhere/data", tmp_path / "here/data")
    for content in (b"1", b"2"):
        write_whole(tmp_path / "here/a.toml", content)
        _whole(tmp_path / "elsewhere/data/old", content)
        assert (tmp_path / "elsewhere/a.toml").read_bytes() == content
    with whole_folder(tmp_path / "here/data") as partial:
        (partial / "new").write_bytes(b"3")
    assert os.readlink(tmp_path / "here/a.toml") == "../elsewhere/a.toml"
    assert os.readlink(tmp_path / "here/data") == "../elsewhere/data"
    assert os.listdir(tmp_path / "elsewhere/data") == ["new"]
    assert sorted(os.listdir(tmp_path / "here")) == ["a.toml", "data"]
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["a.toml", "data"]


def test_an_old_folder_stays_where_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()
    replace = os.replace

    def fails(source, target):
        if os.path.exists(os.path.join(source, "new")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(WriteError, match="No space left"), whole_folder(tmp_path / "folder") as partial:
        (partial / "new").touch()
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["folder", "folder/old"]


def test_a_large_file_is_put_on_a_store_once_it_is_whole():
    url = "memory://whole/file"
    with whole_file(url) as partial:
        partial.write_bytes(b"content")
        assert list_names("memory://whole") == []
    assert fsspec.filesystem("memory").cat_file("/whole/file") == b"content"
    with pytest.raises(ValueError, match="stop"), whole_file(url) as partial:
        partial.write_bytes(b"other")
        raise ValueError("stop")
    assert fsspec.filesystem("memory").cat_file("/whole/file") == b"content"


KILLED = """
import os, signal, sys
from curate.datasets import writing
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "file":
    writing.write_whole(sys.argv[2], b"half")
with writing.whole_folder(sys.argv[2]) as partial:
    (partial / "half").touch()
"""


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_who_may_read_a_file_is_as_the_umask_has_it_whatever_writes_it(tmp_path, umask, mode):
    """safetensors makes files of its own, for their owner alone."""
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "bytes", b"content")
        with whole_file(tmp_path / "weights") as partial:
            save_file({"a": torch.zeros(3)}, partial)
        with whole_folder(tmp_path / "checkpoint") as partial:
            save_file({"a": torch.zeros(3)}, partial / "weights")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {"bytes": mode, "weights": mode}
    assert len(files) == 3


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    (tmp_path / "below").mkdir()
    for kind, name in (("file", "a"), ("file", "below/a"), ("folder", "b"), ("folder", "below/b.c")):
        done = subprocess.run([sys.executable, "-c", KILLED, kind, tmp_path / name])
        assert done.returncode == -signal.SIGKILL
    (tmp_path / "whole").write_bytes(b"whole")
    left = [path for folder in (tmp_path, tmp_path / "below") for path in folder.iterdir()]
    assert len([p for p in left if p.name.startswith(".") and p.name.endswith(".partial")]) == 4
    assert {p.name for p in left if not p.name.endswith(".partial")} == {"whole", "below"}
    with whole_folder(tmp_path / "below/b"):
        pass
    with whole_folder(tmp_path / "b"):
        pass
    assert not list(tmp_path.glob(".b.*")), "what a killed writer of this very folder left"
    assert len(list(tmp_path.rglob(".*.partial"))) == 3, "that of another, b.c, stays"
    remove_partials(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["b", "below", "below/b", "whole"]


def test_a_lock_is_held_by_one_and_missing_locks_are_a_reason(tmp_path, monkeypatch):
    with (tmp_path / "lock").open("a+") as first, (tmp_path / "lock").open("a+") as second:
        assert writing.lock(first) == ""
        with pytest.raises(BlockingIOError):
            writing.lock(second)

    def fails(number):
        def flock(file, how):
            raise OSError(number, os.strerror(number))

        return flock

    with (tmp_path / "lock").open("a+") as file:
        for number in (errno.ENOLCK, errno.ENOTSUP):
            monkeypatch.setattr(writing.fcntl, "flock", fails(number))
            assert writing.lock(file) == f"this file system has no locks ({os.strerror(number)})"
        monkeypatch.setattr(writing.fcntl, "flock", fails(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            writing.lock(file)


@pytest.mark.parametrize(
    "told", ["I/O error: No space left on device (os error 28)", "IoError(Os { code: 28, kind: StorageFull })"]
)
def test_a_full_disk_is_known_by_what_rust_says_of_it(told):
    with pytest.raises(WriteError, match=r"a/b: cannot be written \(No space left on device\)"), write_errors("a/b"):
        raise ValueError(told)
