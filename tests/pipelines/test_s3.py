"""Shards and score tables on an S3 server on loopback, by s3fs over HTTP: as they are, and while requests are refused."""

from __future__ import annotations

from dataclasses import replace

import fsspec
import pytest
from curate.datasets import list_shards
from curate.datasets.landed import landed_files, landed_shards
from curate.datasets.spec import add_dataset, add_model, find_dataset, load_config
from curate.scoring import open_scores
from support.commands import curate
from support.prepared import Digits
from support.s3_server import Refusing, s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as made:
        yield made


@pytest.fixture
def toml(server: Refusing, digits: Digits, tmp_path):
    """A curate.toml whose digits lie on S3."""
    server.mend()
    s3 = fsspec.filesystem("s3")
    entry = dict(digits.config.datasets["digits"])
    for split in ("train", "test"):
        shards = list_shards(digits.dataset(), split)
        for shard in shards:
            s3.put_file(shard.url, f"bucket/{split}/{shard.url.rsplit('/', 1)[1]}")
        entry[split] = f"s3://bucket/{split}/*.tar"
    entry.pop("analysis", None)
    add_dataset(tmp_path / "curate.toml", "digits", entry)
    for name in ("scorer", "learner"):
        add_model(tmp_path / "curate.toml", name, digits.config.models[name])
    yield tmp_path / "curate.toml"
    server.mend()


def score(digits: Digits, toml, out: str):
    arguments = ("--reference", digits.reference, "--precision", "fp32", "--out", out)
    return curate("score-reference", "--config", toml, "--dataset", "digits", *arguments)


@pytest.mark.parametrize("every", [0, 4])
def test_the_table_is_the_one_made_of_local_files(every, server, digits, toml):
    server.every, server.refused = every, 0
    out = f"s3://bucket/scores-{every}"
    done = score(digits, toml, out)
    assert done.code == 0, done.err
    assert (server.refused > 0) == (every > 0)
    folder = done.out.strip()
    assert folder.startswith(out)
    ours, local = (
        open_scores(path).read().sort_by([("shard", "ascending"), ("row", "ascending")])
        for path in (folder, str(digits.table))
    )
    assert ours.equals(local)
    again = score(digits, toml, out)
    assert again.code == 0 and "0 to do" in again.err

    names = fsspec.filesystem("s3").find(folder)
    assert not [name for name in names if "partial" in name or "writable" in name], (
        "one put a file, nothing left behind"
    )


def test_status_sql_and_training_read_it_there(server, digits, toml, tmp_path):
    folder = score(digits, toml, "s3://bucket/scores").out.strip()
    status = curate("status", "s3://bucket/scores", "--config", toml)
    shards = len(list_shards(digits.dataset()))
    assert status.code == 0 and f"{shards} of {shards} shards done" in status.out, status.out
    answer = tmp_path / "answer.csv"
    asked = curate(
        "sql",
        "SELECT count(*) AS n FROM scores",
        "--scores",
        "s3://bucket/scores",
        "--output",
        answer,
        "--format",
        "csv",
    )
    assert asked.code == 0, asked.err
    assert answer.read_text().split() == ['"n"', str(open_scores(str(digits.table)).read().num_rows)]
    server.every = 5
    trained = curate(
        *("train", "--config", toml, "--dataset", "digits", "--learner", "learner", "--online", "scorer"),
        *("--policy", "learnability", "--reference-scores", folder, "--steps", 3, "--batch-size", 16),
        *("--out", tmp_path / "runs", "--name", "run"),
    )
    assert trained.code == 0, trained.err
    assert load_config(toml).datasets["digits"]["train"].startswith("s3://")


def test_what_has_landed_there(server, digits, toml):
    spec = find_dataset("digits", load_config(toml))
    assert landed_shards(spec) == list_shards(spec)
    first = landed_files(spec)
    assert landed_files(spec) == first
    s3 = fsspec.filesystem("s3")
    s3.pipe_file(first[2].shard.url, s3.cat_file(first[2].shard.url)[:-512])
    again = landed_files(spec)
    assert [a.version == b.version for a, b in zip(first, again, strict=True)] == [True, True, False, True, True, True]
    assert landed_files(replace(spec, train=("s3://bucket/none/*.tar", "s3://bucket/none/{0..9}.tar"))) == []
