"""A shard that cannot be read does not end a run that may skip it, and a resume leaves out the same."""

from __future__ import annotations

import json

import pytest
from curate.datasets import readers
from curate.errors import ReadError, ShardError, SpecError
from curate.training import loading, reference, train
from support.commands import silent
from support.tiny import go, go_until, options_of, shard, weights, write_toml


@pytest.fixture
def many(tmp_path):
    for i in range(6):
        shard(tmp_path / f"{i}.tar", range(20 * i, 20 * i + 20))
    write_toml(tmp_path, train="*.tar")
    return tmp_path


def broken(monkeypatch, *names, reads=0):
    """These shards fail after so many reads of each."""
    seen = dict.fromkeys(names, 0)

    def read(spec, shard):
        if shard.name in seen:
            seen[shard.name] += 1
            if seen[shard.name] > reads:
                raise ReadError(f"{shard.url}: cannot be read (Input/output error)")
        yield from readers.read_shard(spec, shard)

    monkeypatch.setattr(loading, "read_shard", read)


@pytest.mark.parametrize("options", [{}, {"host_bytes": 1, "cache_bytes": 0}, {"host_bytes": 1, "lanes": 2}])
def test_the_run_goes_on_and_says_what_it_left_out(many, monkeypatch, options):
    broken(monkeypatch, "2")
    told = []
    summary = go(many, max_bad_shards=1, report=told.append, **options)
    assert summary["steps"] == 12
    assert summary["skipped_shards"].keys() == {"2"}
    assert "Input/output error" in summary["skipped_shards"]["2"]
    assert sum("shard '2' cannot be read and is skipped" in line for line in told) == 1
    assert summary["counts"]["examples"] == 100


def test_too_many_are_an_error_that_names_the_way_out(many, monkeypatch):
    broken(monkeypatch, "2", "4")
    with pytest.raises(ReadError, match=r"1 of 6 shards cannot be read, 0 may be skipped \(--max-bad-shards\)"):
        go(many)
    with pytest.raises(ReadError, match="2 of 6 shards cannot be read, 1 may be skipped"):
        go(many, max_bad_shards=1)
    with pytest.raises(SpecError, match="--max-bad-shards is -1"):
        go(many, max_bad_shards=-1)


def test_when_nothing_can_be_read_there_is_no_run(many, monkeypatch):
    broken(monkeypatch, *"012345")
    with pytest.raises(ReadError, match="6 of 6 shards cannot be read"):
        go(many, max_bad_shards=6)


def test_a_cut_tar_is_skipped_too(many):
    (many / "3.tar").write_bytes((many / "3.tar").read_bytes()[:5000])
    with pytest.raises(ShardError, match="cut or damaged"):
        go(many)
    assert go(many, max_bad_shards=1)["skipped_shards"].keys() == {"3"}


@pytest.mark.parametrize("options", [{}, {"host_bytes": 1, "cache_bytes": 0}], ids=["in memory", "windows"])
def test_a_resume_leaves_out_the_same_whether_or_not_it_can_be_read_again(many, tmp_path, monkeypatch, options):
    broken(monkeypatch, "2", reads=1 if options else 0)
    options = {**options, "max_bad_shards": 1, "steps": 24}
    whole = go(many, **options)
    assert whole["skipped_shards"]
    expected = weights(many)
    (many / "runs/run").rename(many / "runs/whole")
    broken(monkeypatch, "2", reads=1 if options.get("host_bytes") else 0)
    go_until(18, many, **options)
    state = json.loads((many / "runs/run/checkpoints/resume-000000016/state.json").read_text())
    assert state["batches"]["skipped"].keys() == {"2"}
    monkeypatch.setattr(loading, "read_shard", readers.read_shard)
    again = go(many, resume=True, **options)
    assert weights(many) == expected
    assert again["skipped_shards"].keys() == {"2"}
    assert again["counts"] == whole["counts"]


def test_the_checks_before_a_run_pass_over_it_too(digits, tmp_path, monkeypatch):
    """The first shard is one of those of which a few examples are scored again."""
    broken(monkeypatch, "00000")
    monkeypatch.setattr(reference, "read_shard", loading.read_shard)
    options = options_of(
        tmp_path,
        dataset="digits",
        policy="easy-reference",
        reference_scores=str(digits.table),
        max_bad_shards=1,
    )
    assert train(options, config=digits.config, report=silent)["skipped_shards"].keys() == {"00000"}
