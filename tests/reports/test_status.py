"""How far a table is, from its files: complete, cut short, damaged, and with nobody to say what is missing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from curate.datasets.spec import Config
from curate.errors import TableError
from curate.reports.status import table_status
from curate.scoring.tables.lookup import open_scores
from support.commands import curate

NOBODY = Config(None, {}, {})


@pytest.fixture
def table(digits, tmp_path):
    """A copy of the digits' table, its six shards committed two seconds apart, 150 examples each."""
    folder = tmp_path / "table"
    shutil.copytree(digits.table, folder)
    for i in range(6):
        os.utime(folder / f"{i:05d}.parquet", (1000.0 + 2 * i, 1000.0 + 2 * i))
    return folder


def states(status):
    return {shard.shard: shard.state for shard in status.shards}


def test_a_complete_table(table, digits):
    status = table_status(str(table), digits.config, now=1025.0)
    assert status.complete and status.examples == 900 and status.failures == 0
    assert set(states(status).values()) == {"done"} and len(status.shards) == 6
    assert status.rate == pytest.approx(5 * 150 / 10)
    assert status.idle == pytest.approx(15.0)


def test_what_is_missing_unreadable_and_damaged(table, digits):
    (table / "00001.parquet").unlink()
    (table / "00003.parquet").unlink()
    (table / "_errors").mkdir(exist_ok=True)
    (table / "_errors/00003.json").write_text(json.dumps({"error": "00003.tar: cut in the middle"}))
    (table / "00004.parquet").write_bytes(b"PAR1 not really")
    status = table_status(str(table), digits.config)
    assert states(status) == {
        **{f"0000{i}": "done" for i in (0, 2, 5)},
        "00001": "missing",
        "00003": "unreadable",
        "00004": "damaged",
    }
    assert status.complete is False and status.examples == 450
    done = curate("status", table, "--config", digits.toml)
    assert done.code == 0 and done.err == ""
    assert "3 of 6 shards done: 450 examples scored, 0 failed (0.00 %); 1 unreadable, 1 damaged, 1 missing" in done.out
    assert "delete the damaged files, then run the same score-reference command again" in done.out
    assert "cut in the middle" in done.out and "it scores only the missing shards" in done.out
    assert "00000" not in done.out.replace(str(table), "")
    every = curate("status", table, "--config", digits.toml, "--all")
    assert all(f"0000{i}" in every.out for i in range(6))


def test_a_pause_is_not_slowness(table, digits):
    for i in (4, 5):
        os.utime(table / f"{i:05d}.parquet", (9000.0 + i, 9000.0 + i))
    assert table_status(str(table), digits.config).rate == pytest.approx(150.0)


def test_without_the_data_set_nothing_is_called_missing(table):
    (table / "00001.parquet").unlink()
    status = table_status(str(table), NOBODY)
    assert status.complete is None and status.count("missing") == 0 and status.count("done") == 5
    folder = table.parent / "elsewhere"
    folder.mkdir()
    (folder / "curate.toml").write_text("")
    done = curate("status", table, "--config", folder / "curate.toml")
    assert "5 shards done" in done.out and "data set 'digits' is not in curate.toml" in done.out


def test_json_and_failures(with_a_bad_picture, digits):
    done = curate("status", with_a_bad_picture, "--config", digits.toml, "--format", "json")
    values = json.loads(done.out)
    assert values["totals"] == {
        "examples": 899,
        "failures": 1,
        "done": 6,
        "missing": 0,
        "unreadable": 0,
        "damaged": 0,
    }
    assert curate("status", with_a_bad_picture, "--format", "yaml").error.startswith("--format is 'yaml'")


@pytest.fixture
def with_a_bad_picture(digits, tmp_path):
    """The digits' table, scored anew with one undecodable picture among them."""
    import dataclasses

    from curate.pipelines.score_reference import score_reference
    from support.commands import silent
    from support.tars import replace_member

    data = tmp_path / "data"
    shutil.copytree(digits.root / "data" / "digits" / "train", data)
    first = sorted(data.glob("*.tar"))[0]
    import tarfile

    with tarfile.open(first) as tar:
        name = next(n for n in tar.getnames() if n.endswith(".png"))
    replace_member(first, {name: b"no picture"})
    spec = dataclasses.replace(digits.dataset(), train=(str(data / "*.tar"),))
    return Path(score_reference(digits.options(tmp_path / "scores", dataset=spec), silent).folder)


def test_no_table(tmp_path):
    with pytest.raises(TableError, match="0 score tables there"):
        table_status(str(tmp_path), NOBODY)
    assert (
        "/none: no such folder; 'curate score-reference' writes score tables"
        in curate("status", tmp_path / "none").error
    )
    for name in "dbca":
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    runs = tmp_path / "runs"
    told = curate("status", runs).error
    assert told.startswith(
        f"{runs}: holds runs ({runs}/a, {runs}/b, {runs}/c, ...) and no score table; give the folder of one run"
    )
    with pytest.raises(TableError, match="runs/a: is a run, no score table; give the folder of a table"):
        open_scores(str(runs / "a"))
