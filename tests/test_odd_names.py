"""Folders, shards and data sets with names that globs, URLs and SQL take for something else work in every command."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from curate.datasets.shards import list_shards
from curate.datasets.spec import find_dataset, load_config
from curate.errors import ShardError, SpecError, TableError
from curate.reports import connect
from curate.scoring.tables.lookup import open_scores
from support.commands import curate
from support.prepared import IN_MEMORY

ODD = ["a[1] x#y", "q?z 50%", "{b,c}st*r", "~p'q\""]


@pytest.mark.parametrize("name", ODD)
def test_every_command_finds_what_another_one_wrote(digits, tmp_path, name):
    root = tmp_path / name
    shutil.copytree(digits.root / "data", root / "data")
    train = root / "data/digits/train"
    os.rename(train / "00000.tar", train / f"{name}.tar")
    toml = root / "curate.toml"
    text = (digits.root / "curate.toml").read_text()
    text = text.replace("train/{00000..00005}.tar", "train/*.tar").replace(
        "[datasets.digits]", '[datasets."my digits"]'
    )
    toml.write_text(text)
    assert 'datasets."my digits"' in text and "train/*.tar" in text
    scores, runs = root / "scores", root / "runs"
    common = ("--config", toml, "--dataset", "my digits", "--precision", "fp32")
    scored = curate("score-reference", *common, "--reference", digits.reference, "--out", scores, "--", *IN_MEMORY)
    assert scored.code == 0, scored
    table = Path(scored.out.strip())
    assert table == scores / "dataset=my digits" / table.name and (table / f"{name}.parquet").is_file()
    again = curate("score-reference", *common, "--reference", digits.reference, "--out", scores, "--", *IN_MEMORY)
    assert "0 to do" in again.err
    status = curate("status", scores, "--config", toml, "--all")
    assert status.code == 0, status
    options = ("--learner", "learner", "--policy", "easy-reference", "--reference-scores", scores, "--out", runs)
    trained = curate("train", *common, *options, "--name", "run", "--batch-size", 16, "--steps", 2, "--no-evaluate")
    assert trained.code == 0, trained
    assert Path(trained.out.strip()).is_dir()
    sql = connect(scores=str(scores), runs=str(runs))
    assert sql.execute("SELECT count(*), count(DISTINCT shard) FROM scores").fetchone() == (900, 6)
    assert sql.execute("SELECT DISTINCT dataset FROM scores").fetchone() == ("my digits",)
    assert sql.execute(f"SELECT count(*) FROM scores WHERE shard = {sqls(name)}").fetchone() == (150,)
    assert sql.execute("SELECT count(*) FROM selections").fetchone()[0] > 0
    assert open_scores(str(scores)).shard(name).shard == name
    assert find_dataset("my digits", load_config(toml)).num_classes == 10


def sqls(text):
    return "'" + text.replace("'", "''") + "'"


def test_words_that_are_not_utf_8(digits, tmp_path, monkeypatch):
    """As a shell of another encoding gives them."""
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"caf\xe9")
    for told in (curate("sql", f"SELECT '{odd}'"), curate("sql", "SELECT 1", "--runs", odd)):
        assert told.code == 1 and ("not UTF-8" in told.error or "no such folder" in told.error)
    train = ("train", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--steps", 1)
    done = curate(*train, "--batch-size", 16, "--no-evaluate", "--out", odd, "--name", "run")
    assert done.code == 0, done.err
    assert b"caf\xe9/run: done" in (tmp_path / odd / "run/log.txt").read_bytes()
    told = curate("sql", "SELECT run FROM runs", "--runs", odd)
    assert told.code == 1 and "DuckDB reads no path that is not UTF-8" in told.error


def test_accents_spelled_in_the_other_way_are_found_or_said(digits, tmp_path, monkeypatch):
    composed, parts = (unicodedata.normalize(form, "données") for form in ("NFC", "NFD"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / parts / "sub").mkdir(parents=True)
    shutil.copy(digits.root / "data/digits/train/00000.tar", tmp_path / parts / "0.tar")
    for given, word in ((f"{composed}/*.tar", "no shard matches"), (f"{composed}/0.tar", "no shard matches")):
        with pytest.raises(ShardError, match=f"{word} .*; '{parts}' is there in another Unicode spelling: type that"):
            list_shards(find_dataset(given))
    with pytest.raises(SpecError, match="is there in another Unicode spelling"):
        find_dataset(composed)
    with pytest.raises(ShardError, match=r"is not a folder; '.*' is there in another Unicode spelling"):
        list_shards(find_dataset(f"{composed}/sub"))
    with pytest.raises(TableError, match=r"no such folder; .* in another Unicode spelling"):
        open_scores(composed)
    assert [s.name for s in list_shards(find_dataset(f"{parts}/*.tar"))] == ["0"]
    (tmp_path / "curate.toml").write_text(f'[datasets."{composed}"]\ntrain = "{parts}/*.tar"\nclasses = 10\n')
    assert find_dataset(parts, load_config(tmp_path / "curate.toml")).name == composed
