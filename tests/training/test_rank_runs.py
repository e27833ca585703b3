"""A run that several ranks share is the run of one process: its sequence, its ledger, its files, its end."""

from __future__ import annotations

import json
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from curate.training.group import Group
from support.rank_runs import breaks_disk, ends, five_shards, terminates_1, train_in
from support.ranks import run_ranks
from support.tiny import shard, write_toml

# Nothing that is computed over a batch; `drop_rate` shows random numbers.
MODELS = """
[models.learner]
architecture = "vit_tiny_patch16_224"
arguments = { img_size = 16, patch_size = 8, embed_dim = 16, depth = 1, num_heads = 2 }
preprocessing = { size = 16 }

[models.dropping]
architecture = "vit_tiny_patch16_224"
arguments = { img_size = 16, patch_size = 8, embed_dim = 16, depth = 1, num_heads = 2, proj_drop_rate = 0.2 }
preprocessing = { size = 16 }
"""
CHANGES = {
    "policy": "hard-learner",
    "online": "learner",
    "filter_ratio": 0.5,
    "evaluate": True,
    "checkpoint_every": 3,
    "augment": "crop-flip",
    "evaluate_every": 5,
    "keep_every": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return five_shards(tmp_path_factory.mktemp("ranks"), MODELS, CHANGES)


def summary(folder, name):
    return json.loads((folder / f"runs/{name}/summary.json").read_text())


def chosen(folder, name):
    """(step, shard, key) of all that was drawn, and of all that was chosen."""
    files = sorted((folder / f"runs/{name}/selections").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return [[(r["step"], r["shard"], r["key"]) for r in rows if r["selected"] or whole] for whole in (True, False)]


def assert_same_choice(folder, name, other):
    """And the same weights, to rounding."""
    assert chosen(folder, name) == chosen(folder, other)
    ours, theirs = (
        safetensors.numpy.load_file(folder / f"runs/{run}/checkpoints/learner.safetensors") for run in (name, other)
    )
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


def assert_like_one(folder, name):
    assert_same_choice(folder, name, "one")
    ours, theirs = summary(folder, name), summary(folder, "one")
    for exact in ("steps", "examples_trained", "examples_scored", "ledger", "outside_the_ledger", "counts"):
        assert ours[exact] == theirs[exact], exact
    assert ours["quality"] == pytest.approx(theirs["quality"], abs=0.05)
    metrics = [(folder / f"runs/{run}/metrics.jsonl").read_text().splitlines() for run in (name, "one")]
    for line, expected in zip(*(list(map(json.loads, lines)) for lines in metrics), strict=True):
        assert line.keys() >= expected.keys() and line["step"] == expected["step"]
        if "loss" in expected:
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert line["flops"] == expected["flops"] and line["examples"] == expected["examples"]
        if "rows_moved" in line:  # every line of several ranks
            assert line["bytes_moved"] == line["rows_moved"] * 3 * 16 * 16


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_make_the_run_of_one_process(folder, ranks):
    name = f"of-{ranks}"
    (_, told), *others = run_ranks(ranks, train_in, folder, False, None, None, {"name": name, **CHANGES})
    assert_like_one(folder, name)
    lines = [json.loads(line) for line in (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    assert all("bytes_moved" in line for line in lines if "loss" in line)
    assert any(f"on {ranks} ranks of cpu" in line for line in told)
    assert [lines for _, lines in others] == [[]] * (ranks - 1)
    files = {path.relative_to(folder / f"runs/{name}") for path in (folder / f"runs/{name}").rglob("*")}
    assert files == {path.relative_to(folder / "runs/one") for path in (folder / "runs/one").rglob("*")}


def test_two_one_four_two_continue_the_same_run(folder):
    changes = {"name": "2142", **CHANGES}
    for ranks, until in ((2, 4), (1, 7), (4, 10), (2, None)):
        run_ranks(ranks, train_in, folder, True, until, None, changes)
    assert_like_one(folder, "2142")


def test_what_two_ranks_scored_ahead_waits_for_one_process(folder):
    changes = {**CHANGES, "score_ahead": 2}
    train_in(Group(), folder, False, None, None, {"name": "ahead", **changes})
    run_ranks(2, train_in, folder, False, 5, None, {"name": "ahead-2", **changes})
    train_in(Group(), folder, True, None, None, {"name": "ahead-2", **changes})
    assert_same_choice(folder, "ahead-2", "ahead")
    assert chosen(folder, "ahead") != chosen(folder, "one")
    assert summary(folder, "ahead")["counts"] == summary(folder, "ahead-2")["counts"]


def test_three_ranks_resume_bit_for_bit_with_dropout(folder):
    changes = {"learner": "dropping", **CHANGES}
    run_ranks(3, train_in, folder, False, None, None, {"name": "whole", **changes})
    for until in (5, None):
        run_ranks(3, train_in, folder, True, until, None, {"name": "parts", **changes})
    whole, parts = (folder / f"runs/{name}/checkpoints/learner.safetensors" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()


def test_pairs_are_compared_over_all_ranks(pairs, tmp_path):
    """With parts of a batch, and captions that are often identical."""
    names = {"dataset": "pairs", "learner": "untrained-clip", "online": "untrained-clip", "policy": "hard-learner"}
    changes = {**names, "filter_ratio": 0.5, "batch_size": 10, "steps": 4, "accumulate": 2, "out": str(tmp_path)}
    train_in(Group(), pairs.root, False, None, None, {"name": "one", **changes})
    run_ranks(2, train_in, pairs.root, False, None, None, {"name": "two", **changes})
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["masked_negatives"] == theirs["masked_negatives"] > 0
        assert ours["flops"] == theirs["flops"]
        assert ours["bytes_moved"] >= ours["rows_moved"] * 3 * 32 * 32


def test_a_signal_on_one_rank_stops_all_and_saves(folder):
    found = run_ranks(2, ends, folder, False, 5, terminates_1, {"name": "stopped", **CHANGES})
    text = f"stopped by {signal.Signals.SIGTERM.name} after step 5 of 12"
    assert found == [("StoppedError", text, None), ("StoppedError", text, 0)]
    assert (folder / "runs/stopped/checkpoints/resume-000000005").is_dir()


def test_a_full_disk_of_rank_0_ends_all_with_one_error(folder):
    found = run_ranks(2, ends, folder, False, 4, breaks_disk, {"name": "full", **CHANGES})
    assert found == [("WriteError", "the disk is full", None), ("WriteError", "the disk is full", 0)]


def test_what_diverges_ends_all_with_one_error(folder):
    (kind, text, reports), (kind_1, text_1, reports_1) = run_ranks(
        2, ends, folder, False, None, None, {"name": "nan", "lr": 1e9, "warmup": 0.0, **CHANGES}
    )
    assert (kind, text) == (kind_1, text_1) and kind == "DivergedError" and "nan or infinite" in text
    assert (reports, reports_1) == (None, 0)


def test_ranks_with_other_options_are_refused(folder):
    found = run_ranks(2, ends, folder, False, None, None, {"name": "other", "seed": "rank", **CHANGES})
    assert all(kind == "SpecError" and "rank 1 has seed 1, rank 0 has 0" in text for kind, text, _ in found)
    assert not (folder / "runs/other").exists()


def test_a_run_that_exists_is_refused_by_all(folder):
    before = weights_of(folder)
    found = run_ranks(2, ends, folder, False, None, None, {"name": "one", **CHANGES})
    assert [(kind, reports) for kind, _, reports in found] == [("RunError", None), ("RunError", 0)]
    assert weights_of(folder) == before


def weights_of(folder):
    return (folder / "runs/one/checkpoints/learner.safetensors").read_bytes()


def test_a_mixture_and_the_past_of_the_learner_are_those_of_one_process(tmp_path):
    """The second run goes on with three ranks after one."""
    known = {"policy": "infobatch", "filter_ratio": 0.3, "mix": "e:25%", "mix_last": 0.75, "checkpoint_every": 5}
    for i in range(5):
        shard(tmp_path / f"shards/{i}.tar", range(8 * i, 8 * i + 8))
    write_toml(tmp_path, MODELS, train="shards/*.tar")
    with (tmp_path / "curate.toml").open("a") as file:
        file.write('\n[datasets.e]\ntrain = "shards/[13].tar"\nclasses = 10\n')
    train_in(Group(), tmp_path, False, None, None, {"name": "one", **known})
    train_in(Group(), tmp_path, False, 7, None, {"name": "later", **known})
    run_ranks(3, train_in, tmp_path, True, None, None, {"name": "later", **known})
    assert_same_choice(tmp_path, "one", "later")
    drawn, _ = chosen(tmp_path, "one")
    assert {step for step, name, _ in drawn if name.startswith("e/")} == set(range(4, 13))
    assert summary(tmp_path, "one")["counts"] == summary(tmp_path, "later")["counts"]
