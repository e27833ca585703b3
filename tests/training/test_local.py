"""The local choice: each rank chooses its share among its own rows, and one run's files hold what all chose."""

from __future__ import annotations

import json
import random
import zlib

import pyarrow.parquet as pq
import pytest
from curate.datasets.spec import find_dataset, load_config
from curate.errors import RunError, SpecError
from curate.scoring.selector import Selector
from curate.training.group import Group
from curate.training.local import LocalSelector, local_shares
from curate.training.options import RunOptions
from support.rank_runs import ends, train_in
from support.rank_work import choose
from support.ranks import run_ranks
from support.tiny import go, shard, write_toml

CHANGES = {"policy": "hard-learner", "online": "learner", "selection": "local", "filter_ratio": 0.5, "log_every": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in five shards: two ranks hold three lanes and two."""
    made = tmp_path_factory.mktemp("local")
    for i in range(5):
        shard(made / f"shards/{i}.tar", range(22 * i, 22 * i + 22))
    write_toml(made, train="shards/*.tar")
    return made


def test_shares_are_in_proportion_and_never_more_than_is_held():
    chance = random.Random(0)
    for _ in range(500):
        held = [chance.randint(0, 9) for _ in range(chance.randint(1, 6))]
        size = sum(held)
        for b in range(1, size + 1):
            shares = local_shares(held, b)
            assert sum(shares) == b
            assert all(
                abs(share - b * rows / size) < 1 and share <= rows for share, rows in zip(shares, held, strict=True)
            )


def loss(name):
    return zlib.crc32("/".join(name).encode()) / 2**32


@pytest.mark.parametrize("late", [False, True])
def test_each_rank_takes_the_best_of_its_own(folder, late):
    spec = find_dataset("d", load_config(folder / "curate.toml"))
    options = {"local": True, "sampler": "topk", "late": late, "size": 40, "b": 10}
    (first, _), (second, _) = run_ranks(2, choose, spec, 4, None, options)
    for one, two in zip(first, second, strict=True):
        assert one["drawn"] == two["drawn"] and set(one["held"]).isdisjoint(two["held"])
        for found, share in ((one, 6), (two, 4)):
            best = sorted(found["held"], key=loss, reverse=True)[:share]
            assert found["trained"] == [name for name in found["held"] if name in best]
            assert (found["weight"], found["moved"]) == (share * 2 / 10, 0)
        assert one["positions"] + two["positions"] == list(range(10))
    # Random numbers: resumed, the same are drawn; ranks draw different ones.
    options["sampler"] = "softmax"
    whole = run_ranks(2, choose, spec, 4, None, options)
    half = run_ranks(2, choose, spec, 2, None, options)
    rest = run_ranks(2, choose, spec, 2, half[0][1], options)
    for rank in range(2):
        assert [s["trained"] for s in half[rank][0] + rest[rank][0]] == [s["trained"] for s in whole[rank][0]]


def test_a_rank_that_would_choose_nothing_is_refused(folder):
    found = run_ranks(2, ends, folder, False, None, None, {**CHANGES, "name": "none", "batch_size": 2, "lanes": 1})
    assert all(
        kind == "SpecError" and "one would choose none of b = 2; start fewer ranks" in text for kind, text, _ in found
    )


def rows_of(folder, name):
    files = sorted((folder / f"runs/{name}/selections").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_a_local_run_is_recorded_whole_and_resumes(folder):
    changes = {**CHANGES, "name": "local"}
    train_in(Group(), folder, False, None, None, {**changes, "name": "one"})
    run_ranks(2, train_in, folder, False, None, None, {**changes, "name": "whole"})
    run_ranks(2, train_in, folder, False, 6, None, changes)
    refused = "began with ranks that choose = 2, now 3; restore what it began with"
    found = run_ranks(3, ends, folder, True, None, None, changes)
    assert all(kind == "RunError" and refused in text for kind, text, _ in found)
    with pytest.raises(RunError, match="ranks that choose = 2, now 1"):
        train_in(Group(), folder, True, None, None, changes)
    with pytest.raises(RunError, match="selection = local, now global"):
        train_in(Group(), folder, True, None, None, {**changes, "selection": "global"})
    run_ranks(2, train_in, folder, True, None, None, changes)
    one, whole, resumed = (folder / f"runs/{name}" for name in ("one", "whole", "local"))
    assert (resumed / "checkpoints/learner.safetensors").read_bytes() == (
        whole / "checkpoints/learner.safetensors"
    ).read_bytes()
    assert rows_of(folder, "local") == rows_of(folder, "whole")
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (whole, one))
    assert all(ours[name] == theirs[name] for name in ("ledger", "steps", "examples_scored", "counts"))

    drawn, alone = rows_of(folder, "whole"), rows_of(folder, "one")
    assert [(r["step"], r["shard"], r["key"]) for r in drawn] == [(r["step"], r["shard"], r["key"]) for r in alone]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        rows = [row for row in drawn if row["step"] == line["step"]]
        chosen = [row["score"] for row in rows if row["selected"]]
        assert (len(rows), len(chosen)) == (32, 16) and line["rows_moved"] == 0
        assert line["score"] == pytest.approx(sum(row["score"] for row in rows) / 32)
        assert line["score_selected"] == pytest.approx(sum(chosen) / 16)
    # What was recorded is enough to train on it again, in one process.
    train_in(Group(), folder, False, None, None, {"name": "again", "filter_ratio": 0.5, "replay": str(whole)})
    again = rows_of(folder, "again")
    assert [row["selected"] for row in again] == [row["selected"] for row in drawn]


def test_what_cannot_be_local_is_refused():
    with pytest.raises(SpecError, match="policy 'jest' compares all pairs"):
        LocalSelector(Selector("jest", 4), Group())
    known = {"dataset": "d", "learner": "l", "steps": 3, "selection": "local"}
    with pytest.raises(SpecError, match="policy 'jest' compares all pairs"):
        RunOptions.of(**known, policy="jest", reference_scores="scores")
    with pytest.raises(SpecError, match="leave --selection local out"):
        RunOptions.of(**known, replay="runs/other")
    with pytest.raises(SpecError, match="leave --score-ahead out"):
        RunOptions.of(**known, policy="hard-learner", online="scorer", score_ahead=1)
    with pytest.raises(SpecError, match="--selection is 'some', expected global or local"):
        RunOptions.of(**{**known, "selection": "some"})


def test_one_process_says_what_only_several_heed(folder):
    told = []
    go(folder, steps=1, selection="local", sync_bn=True, report=told.append)
    said = "--selection local and --sync-bn: of no effect, since one process trains this run; torchrun starts several"
    assert told.count(said) == 1
