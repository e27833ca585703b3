"""An fsspec file system that fails as many times as it is told to."""

import os
from typing import ClassVar

import pytest
from curate.datasets import storage
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem


class ClientError(Exception):
    """As botocore, aiohttp and gcsfs have them: no OSError."""


class Moody(AbstractFileSystem):
    """A real file system that fails as many times as it was told to: with the number of an OSError, or with an error.

    `calls` are the requests, `received` the bytes of each that read.
    """

    protocol = "moody"
    root_marker = "/"
    failures: ClassVar[list[int | Exception]] = []
    calls: ClassVar[list[str]] = []
    received: ClassVar[list[int]] = []
    local = LocalFileSystem()

    def _maybe_fail(self, call):
        self.calls.append(call)
        if self.failures:
            failure = self.failures.pop()
            raise OSError(failure, os.strerror(failure)) if isinstance(failure, int) else failure

    def cat_file(self, path, start=None, end=None, **options):
        self._maybe_fail("cat")
        content = self.local.cat_file(self._strip_protocol(path), start, end)
        self.received.append(len(content))
        return content

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
        self._fs.received.append(len(data))
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def moody(tmp_path, monkeypatch):
    """The URL of a file that does not exist yet, on such a file system."""
    register_implementation("moody", Moody, clobber=True)
    for name in ("failures", "calls", "received"):
        monkeypatch.setattr(Moody, name, [])
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    return f"moody://{tmp_path}/file"
