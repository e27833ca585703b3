"""Score tables: what they hold, and whether two hold the same."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.scoring.tables.lookup import open_scores

LOSS, FLOAT16 = 1e-6, 1e-3


def rows(folder: str | Path) -> list[dict[str, Any]]:
    """All scores of a table, as plain rows; failures apart."""
    return open_scores(str(folder)).read().to_pylist()


def failures(folder: str | Path) -> list[dict[str, Any]]:
    """All failures of a table. No reason holds an object's address, which differs from process to process."""
    files = sorted(Path(open_scores(str(folder)).folder, "_failures").glob("*.parquet"))
    found = [row for file in files for row in pq.read_table(pa.BufferReader(file.read_bytes())).to_pylist()]
    return [{**row, "reason": row["reason"].split(" at 0x")[0]} for row in found]


def score_files(folder: str | Path) -> dict[str, tuple[int, int, bytes]]:
    """By name: when a score file was written, its place on the disk, and its bytes."""
    found = {path.name: (path.stat(), path.read_bytes()) for path in Path(folder).glob("*.parquet")}
    return {name: (stat.st_mtime_ns, stat.st_ino, content) for name, (stat, content) in found.items()}


def assert_same_rows(found: str | Path, wanted: str | Path, told: str = "", *, loss: float = LOSS) -> None:
    """The same examples in the same order, with losses and similarities that are `loss` apart at most."""
    ours, theirs = rows(found), rows(wanted)
    assert [(row["shard"], row["key"]) for row in ours] == [(row["shard"], row["key"]) for row in theirs], told
    close = {"loss": loss, "similarity": loss, "image_embedding": FLOAT16, "text_embedding": FLOAT16}
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys(), told
        for name, value in row.items():
            same = pytest.approx(other[name], rel=0, abs=close[name]) if name in close else other[name]
            assert value == same, (name, row["shard"], row["key"], told)


def assert_same_table(found: str | Path, wanted: str | Path, told: str = "", *, loss: float = LOSS) -> None:
    """The same rows, the same failures and counts, and nothing else in the folder."""
    assert_same_rows(found, wanted, told, loss=loss)
    assert failures(found) == failures(wanted), told
    assert open_scores(str(found)).manifest["counts"] == open_scores(str(wanted)).manifest["counts"], told
    assert _names(found) == _names(wanted), told


def _names(folder: str | Path) -> list[str]:
    """An empty `_errors` is no difference (a shard was noted there, and read later), nor are a lock and counts that were kept."""
    found = {path.name for path in Path(folder).iterdir()}
    return sorted(found - {".lock", "_counts"} - ({"_errors"} if not list(Path(folder).glob("_errors/*")) else set()))
