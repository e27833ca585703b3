"""A learner in shards takes the steps of one process."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from curate.errors import SpecError
from curate.training.group import Group
from curate.training.startup import refuse_shards
from support.rank_runs import train_in
from support.ranks import run_ranks
from support.shard_runs import HARDEST, all_steps, legs_of
from support.tiny import go, options_of, shard, write_toml

MODELS = """
[models.learner]
architecture = "vit_tiny_patch16_224"
arguments = { img_size = 16, patch_size = 8, embed_dim = 16, depth = 2, num_heads = 2 }
preprocessing = { size = 16 }
"""
# The learner scores by itself, and is measured and kept on the way.
CHANGES = {
    "policy": HARDEST,
    "filter_ratio": 0.5,
    "evaluate": True,
    "checkpoint_every": 3,
    "evaluate_every": 5,
    "keep_every": 4,
    "clip_grad": 1.0,
    "micro_batch": 5,
}
# Whose of seven examples are whose.
OWN = [[0, 2, 4, 6], [1, 3, 5]]


def test_shards_take_the_steps_of_one_process():
    """In float64: also with clipping by the norm of all shards, in parts (GradCache), with activations computed again, with
    layers that learn at rates of their own, and with a scale that cannot be cut."""
    alone = all_steps(Group(), [list(range(7))])
    (first, second) = run_ranks(2, all_steps, OWN)
    for (case, way), (losses, weights, scores) in first.items():
        expected = alone[case, None]
        assert losses == pytest.approx(expected[0], rel=1e-9), (case, way)
        for name, value in expected[1].items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-6, atol=1e-9, err_msg=f"{case} {way} {name}")
        assert scores | second[case, way][2] == pytest.approx(expected[2], rel=1e-9), (case, way)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """110 images in five shards, a test split, and `one`, the run of a single process."""
    made = tmp_path_factory.mktemp("shards")
    for i in range(5):
        shard(made / f"shards/{i}.tar", range(22 * i, 22 * i + 22))
    write_toml(made, MODELS, train="shards/*.tar", test="shards/[01].tar")
    train_in(Group(), made, False, None, None, {"name": "one", **CHANGES})
    return made


def weights_of(folder, name, file="learner"):
    return safetensors.numpy.load_file(folder / f"runs/{name}/checkpoints/{file}.safetensors")


def metrics_of(folder, name):
    return [json.loads(line) for line in (folder / f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def assert_like_one(folder, name):
    for file in ("learner", "learner-000000004", "learner-000000008"):
        ours, theirs = (weights_of(folder, run, file) for run in (name, "one"))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
        for key, value in theirs.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-3, atol=1e-4, err_msg=f"{file} {key}")
    for line, expected in zip(metrics_of(folder, name), metrics_of(folder, "one"), strict=True):
        assert line["step"] == expected["step"] and line["flops"] == expected["flops"]
        if "loss" in expected:
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    ours, theirs = (json.loads((folder / f"runs/{run}/summary.json").read_text()) for run in (name, "one"))
    for exact in ("steps", "examples_trained", "examples_scored", "ledger", "outside_the_ledger", "counts"):
        assert ours[exact] == theirs[exact], exact
    assert ours["quality"] == pytest.approx(theirs["quality"], abs=0.05)


def test_a_run_in_shards_is_the_run_of_one_process_and_resumes_bit_for_bit(folder):
    whole, parts, halves = ({"name": name, "fsdp": True, **CHANGES} for name in ("whole", "parts", "halves"))
    bf16 = {**halves, "precision": "bf16", "steps": 3}
    legs = [(whole, None), (parts, 5), (parts, None), (bf16, None), ({**bf16, "name": "plain", "fsdp": False}, None)]
    told = run_ranks(2, legs_of, folder, legs)
    assert isinstance(told[0], list), told[0]
    assert_like_one(folder, "whole")
    for key, value in weights_of(folder, "whole").items():
        assert (weights_of(folder, "parts")[key] == value).all(), key
    for line, expected in zip(metrics_of(folder, "halves"), metrics_of(folder, "plain"), strict=True):
        assert line.get("loss") == pytest.approx(expected.get("loss"), rel=1e-2)


def test_a_run_is_resumed_with_shards_and_without_by_any_number_of_processes(folder):
    sharded, plain = ({"name": "relay", "fsdp": fsdp, **CHANGES} for fsdp in (True, False))
    run_ranks(2, legs_of, folder, [(sharded, 4), (plain, 7)])
    train_in(Group(), folder, True, 10, None, plain)
    said = run_ranks(3, legs_of, folder, [(sharded, None)])[0][0]
    assert any("resumed after step 9" in line for line in said)
    assert_like_one(folder, "relay")


def test_what_does_not_go_with_shards_is_refused(folder):
    with pytest.raises(SpecError, match="start them with torchrun"):
        go(folder, fsdp=True, **{**CHANGES, "name": "alone"})
    assert not (folder / "runs/alone").exists()
    for changes, said in (
        ({"ema": 0.9}, "leave --ema out"),
        ({"compile": True}, "leave --compile out"),
        ({"optimizer": "lamb"}, "take one of adam, adamw"),
        ({"accumulate": 9}, "--accumulate is 9; with --fsdp expected at most a process's share of --batch-size, 8"),
    ):
        with pytest.raises(SpecError, match=re.escape(said)):
            refuse_shards(options_of(folder, fsdp=True, **changes), 2)
