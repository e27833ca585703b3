"""The stores that data sets and score tables name: whether they can be listed from here, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ..datasets.patterns import expand_braces
from ..datasets.spec import DatasetSpec
from ..datasets.storage import is_local, list_entries
from ..errors import CurateError
from .doctor_findings import Finding

STORES = "stores"
PACKAGES = {"s3": "curate[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
PACKAGES |= dict.fromkeys(["http", "https"], "aiohttp")


def look_at_stores(specs: Sequence[DatasetSpec], scores: str) -> list[Finding]:
    """A finding for each folder on an object store or a server; none for local folders."""
    return [finding for folder in sorted(_folders(specs, scores)) for finding in _look(folder)]


def _folders(specs: Sequence[DatasetSpec], scores: str) -> set[str]:
    found = {scores.rstrip("/")} if "://" in scores else set()
    for spec in specs:
        for pattern in (*spec.train, *spec.test):
            if "://" in pattern:
                first = expand_braces(spec.name, pattern)[0]
                plain = first[: min((first.index(mark) for mark in "*?[" if mark in first), default=len(first))]
                found.add(plain.rpartition("/")[0])
    return found


def _look(folder: str) -> Iterator[Finding]:
    protocol = folder.partition("://")[0]
    line = f"python -c \"import fsspec; fs, path = fsspec.url_to_fs('{folder}'); print(fs.ls(path))\""
    try:
        if is_local(folder):
            return
        started = time.perf_counter()
        entries = list_entries(folder)
        seconds = time.perf_counter() - started
    except CurateError as e:
        missing = isinstance(e.__cause__, ImportError)
        if missing:
            line = f"python -m pip install '{PACKAGES.get(protocol, protocol + 'fs')}'"
        yield Finding(STORES, "act", str(e), line)
        return
    about = f"{folder}: {len(entries):,} entries, listed in {seconds:.2f} s"
    yield Finding(STORES, "ok" if entries else "note", about, "" if entries else line)
