"""Counts are kept for files that did not change, and only for those."""

import os
import shutil

import pytest
from curate.errors import TableError
from curate.scoring.tables.counts import KEPT, all_counts
from curate.scoring.tables.read import finished_shards, shard_counts


@pytest.fixture
def table(digits, tmp_path):
    shutil.copytree(digits.table, tmp_path / "table")
    shutil.rmtree(tmp_path / "table" / KEPT[0])
    return tmp_path / "table"


def test_they_are_what_every_files_own_metadata_says(table):
    names = sorted(finished_shards(str(table)))
    assert len(names) > 1
    expected = {name: shard_counts(str(table), name) for name in names}
    for keep in (False, True, True):
        found = all_counts(str(table), keep=keep)
        assert found == expected and list(found) == names
        assert table.joinpath(*KEPT).exists() == keep


def test_only_files_that_changed_are_opened_again(table):
    before = all_counts(str(table), keep=True)
    first, second = sorted(before)[:2]
    path = table / f"{first}.parquet"
    then = path.stat().st_mtime_ns
    path.write_bytes(b"no longer a score file")
    os.utime(path, ns=(then, then))
    assert all_counts(str(table)) == before, "not opened: it is as old as it was"
    os.utime(path, ns=(then, then + 1_000_000))
    with pytest.raises(TableError, match=f"{first}.parquet: damaged"):
        all_counts(str(table))
    path.unlink()
    assert set(all_counts(str(table), keep=True)) == set(before) - {first}
    shutil.copy2(table / f"{second}.parquet", path)
    assert all_counts(str(table), keep=True)[first] == before[second]


def test_a_damaged_note_is_made_again(table):
    before = all_counts(str(table), keep=True)
    table.joinpath(*KEPT).write_bytes(b"nonsense")
    assert all_counts(str(table), keep=True) == before
    assert table.joinpath(*KEPT).read_bytes() != b"nonsense"
