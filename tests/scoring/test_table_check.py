"""The check of a table before a run: what it reads, and what it does not read again."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.shards import Shard
from curate.errors import ReadError, TableError
from curate.scoring.tables import checked
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard, write_manifest
from curate.scoring.tasks import find_task
from support.moody import Moody

ROWS, WIDTH = 1_000, 256
META = {"reference_fingerprint": "f"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table of three shards with embeddings, of a megabyte each."""
    folder, random = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    task = find_task("image-text")
    for name in ("a", "b", "c"):
        vectors = pa.array(random.standard_normal(ROWS * WIDTH).astype(np.float16))
        columns = {
            "shard": [name] * ROWS,
            "row": np.arange(ROWS),
            "key": [f"{name}-{i}" for i in range(ROWS)],
            "target_hash": random.integers(0, 2**63, ROWS),
            **{column: random.random(ROWS) for column in ("loss", "similarity")},
            **{
                f"{side}_embedding": pa.FixedSizeListArray.from_arrays(vectors, type=embedding_type())
                for side in ("image", "text")
            },
        }
        scores = pa.Table.from_pydict(columns, schema=score_schema(task, WIDTH))
        commit_shard(str(folder), Shard(name=name, url="", size=1, bytes=1), scores, [], META)
    write_manifest(str(folder), {"reference": {"fingerprint": "f"}, "embeddings": True, "task": "image-text"})
    return folder


def embedding_type() -> pa.DataType:
    return score_schema(find_task("image-text"), WIDTH).field("image_embedding").type


@pytest.fixture
def table(made, tmp_path, moody, monkeypatch):
    """A copy on a store whose requests are counted, written long ago. What is remembered is kept here."""
    shutil.copytree(made, tmp_path / "table")
    for path in (tmp_path / "table").iterdir():
        os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(checked, "LEAST_BYTES", 0)
    monkeypatch.setattr(checked, "cache_folder", lambda: tmp_path / "remembered")
    return tmp_path / "table"


def opened(table):
    found = open_scores(f"moody://{table}")
    for log in (Moody.calls, Moody.received):
        log.clear()
    return found


def test_embeddings_are_not_fetched_for_a_check_or_the_losses(table):
    size = sum(path.stat().st_size for path in table.glob("*.parquet"))
    losses = pq.read_table(table / "a.parquet", columns=["loss"])["loss"].to_numpy()
    scores = opened(table)
    assert scores.check() == (3 * ROWS, 0)
    assert 0 < sum(Moody.received) < 0.2 * size
    scores = opened(table)
    np.testing.assert_array_equal(scores.shard("a").loss, losses)
    assert scores.embedding_width == WIDTH
    assert sum(Moody.received) < 0.1 * size


def test_a_file_that_passed_is_read_again_only_if_it_changed(table):
    assert opened(table).check(remember=True) == (3 * ROWS, 0)
    scores = opened(table)
    assert scores.check(remember=True) == (3 * ROWS, 0)
    assert Moody.calls == ["ls"]

    shutil.copy(table / "a.parquet", table / "b.parquet")
    with pytest.raises(TableError, match=r"b\.parquet: holds rows of shard 'a'; the file was renamed or copied"):
        opened(table).check(remember=True)
    (table / "b.parquet").unlink()
    scores = opened(table)
    assert scores.check(remember=True) == (2 * ROWS, 0)
    assert Moody.calls == ["ls"]
    assert open_scores(f"moody://{table}").check() == (2 * ROWS, 0)


def test_a_file_written_just_now_and_a_small_table_are_not_remembered(table, monkeypatch):
    os.utime(table / "c.parquet")
    for _ in range(2):
        scores = opened(table)
        scores.check(remember=True)
    assert Moody.calls.count("open") == 1, "c alone"
    monkeypatch.setattr(checked, "LEAST_BYTES", 1 << 30)
    scores = opened(table)
    scores.check(remember=True)
    assert Moody.calls.count("open") == 3


def test_a_note_that_is_damaged_or_cannot_be_written_costs_time_alone(table, tmp_path):
    (tmp_path / "remembered").write_bytes(b"a file where the folder should be")
    for _ in range(2):
        assert opened(table).check(remember=True) == (3 * ROWS, 0)
    (tmp_path / "remembered").unlink()
    opened(table).check(remember=True)
    (note,) = (tmp_path / "remembered").iterdir()
    note.write_bytes(b"nonsense")
    scores = opened(table)
    assert scores.check(remember=True) == (3 * ROWS, 0)
    assert Moody.calls.count("open") == 3


def test_a_store_that_fails_is_not_a_damaged_file(table):
    scores = opened(table)
    Moody.failures[:] = [OSError("gone")] * 3
    with pytest.raises(ReadError, match="cannot be read"):
        scores.shard("a")
    with pytest.raises(TableError, match=r"has no column 'nothing', only "):
        open_scores(f"moody://{table}").read(["nothing"])
