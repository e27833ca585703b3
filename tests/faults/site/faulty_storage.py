"""A real fsspec file system over the local one, as object stores are at their worst: failing, slow, listing late.

FAULTY="read=40,write=15,late=3,slow=0.001" in the environment: every 40th read and every 15th write fails, a new file
is listed from the third listing on, every call takes a millisecond more. A file system of its own, not fsspec's local
one, so that nothing takes the short way that local disks have.
"""

import errno
import os
import threading
import time
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

SETTINGS = {k: float(v) for k, v in (pair.split("=") for pair in os.environ.get("FAULTY", "").split(",") if pair)}


class FaultyFileSystem(AbstractFileSystem):
    protocol = "faulty"
    root_marker = "/"

    def __init__(self, **options):
        super().__init__(**options)
        self._local = LocalFileSystem(auto_mkdir=True)
        self._lock = threading.Lock()
        self._calls = {"read": 0, "write": 0}
        self._listings = {}

    def _fault(self, kind, path):
        time.sleep(SETTINGS.get("slow", 0))
        with self._lock:
            self._calls[kind] += 1
            calls = self._calls[kind]
        if SETTINGS.get(kind) and calls % SETTINGS[kind] == 0:
            if log := os.environ.get("FAULTY_LOG"):
                with open(log, "a") as file:
                    file.write(f"{kind}\n")
            return OSError(errno.EIO, f"every {SETTINGS[kind]:.0f}th {kind} fails", path)
        return None

    def _read(self, path):
        if error := self._fault("read", path):
            raise error

    def _write(self, path, write):
        """Every other failing write has taken effect all the same: only its answer was lost."""
        error = self._fault("write", path)
        if error is None or self._calls["write"] // SETTINGS["write"] % 2:
            write()
        if error is not None:
            raise error

    def ls(self, path, detail=True, **options):
        self._read(path)
        path = self._strip_protocol(path)
        found = []
        for entry in self._local.ls(path, detail=True):
            with self._lock:
                times = self._listings[entry["name"]] = self._listings.get(entry["name"], 0) + 1
            new = time.time() - Path(entry["name"]).stat().st_mtime < 600
            if entry["type"] == "directory" or not new or times >= SETTINGS.get("late", 0):
                found.append(entry)
        return found if detail else [entry["name"] for entry in found]

    def info(self, path, **options):
        self._read(path)
        return self._local.info(self._strip_protocol(path))

    def cat_file(self, path, **options):
        self._read(path)
        return self._local.cat_file(self._strip_protocol(path), **options)

    def _open(self, path, mode="rb", **options):
        assert mode == "rb", "files are put whole"
        self._read(path)
        return _File(self, self._local.open(self._strip_protocol(path), "rb"), path)

    def pipe_file(self, path, value, **options):
        path = self._strip_protocol(path)
        self._write(path, lambda: self._put(path, value))

    def _put(self, path, value):
        self._local.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{os.getpid()}.{threading.get_ident()}.put"
        Path(partial).write_bytes(value)
        os.replace(partial, path)

    def rm_file(self, path):
        path = self._strip_protocol(path)
        self._write(path, lambda: self._local.rm_file(path))

    def makedirs(self, path, exist_ok=False):
        self._local.makedirs(self._strip_protocol(path), exist_ok=exist_ok)


class _File:
    def __init__(self, fs, file, path):
        self._fs, self._file, self._path = fs, file, path

    def read(self, size=-1):
        self._fs._read(self._path)
        return self._file.read(size)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()
