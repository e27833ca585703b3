"""A learner in shards takes the steps of one process."""

from __future__ import annotations

import json
import re
import signal

import numpy as np
import pytest
import safetensors.numpy
import torch
from curate.errors import SpecError
from curate.training.group import Group
from curate.training.memory import Needs, measure
from curate.training.sharding import blocks_of
from curate.training.startup import refuse_shards
from curate.training.trainee import Trainee
from support.rank_runs import ends, five_shards, model_of, train_in
from support.ranks import run_ranks
from support.shard_runs import HARDEST, all_steps, kills_next_save, legs_of, troubles_of
from support.tiny import go, options_of

MODELS = """
[models.learner]
architecture = "vit_tiny_patch16_224"
arguments = { img_size = 16, patch_size = 8, embed_dim = 16, depth = 2, num_heads = 2 }
preprocessing = { size = 16 }

[models.convolutional]
architecture = "small_resnet"
arguments = { channels = [8, 16], layers = [0] }
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
    "ema": 0.7,
}
# Whose of seven examples are whose.
OWN = [[0, 2, 4, 6], [1, 3, 5]]


def test_shards_take_the_steps_of_one_process():
    """In float64: also with clipping by the norm of all shards, in parts (GradCache), with activations computed again, with
    layers that learn at rates of their own, with a moving average, and with a scale that cannot be cut."""
    alone = all_steps(Group(), [list(range(7))])
    (first, second) = run_ranks(2, all_steps, OWN)
    for case, (losses, weights, scores, held) in enumerate(first):
        expected_losses, expected_weights, expected_scores, total = alone[case]
        assert losses == pytest.approx(expected_losses, rel=1e-9), case
        for name, value in expected_weights.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-6, atol=1e-9, err_msg=f"{case} {name}")
        assert scores | second[case][2] == pytest.approx(expected_scores, rel=1e-9), case
        assert held < 0.65 * total and second[case][3] < 0.65 * total, case


def test_blocks_are_what_a_model_calls_one_after_another():
    vit, clip = (model_of(kind).module for kind in ("classes", "softmax"))
    assert blocks_of(vit) == [vit.blocks[1], vit.blocks[0]]
    assert set(blocks_of(clip)) == {*clip.visual.transformer.resblocks, *clip.transformer.resblocks}
    assert blocks_of(torch.nn.Sequential(torch.nn.Linear(2, 2))) == []


def test_the_estimate_of_memory_counts_a_rank_s_shard():
    """A learner that scores is gathered for that."""
    whole, cut = (measure(needs_with(fsdp)) for fsdp in (None, "fp32"))
    parameters = whole.held["parameters"]
    assert cut.held["parameters"] == parameters - parameters // 2
    assert cut.held["optimizer"] == whole.held["optimizer"] // 2
    assert cut.peaks["scoring"] == whole.peaks["scoring"] + parameters


def needs_with(fsdp):
    learner = Trainee(model_of("classes"), lr=1e-3, device=torch.device("cpu"), group=Group(0, 2), fsdp=fsdp)
    return Needs(
        learner=learner,
        online=None,
        scoring=[learner.model],
        views=[learner.model.geometry],
        ahead=[learner.model.geometry],
        sub_batch=8,
        super_batch=16,
        micro_batch=16,
        accumulate=1,
        grad_checkpointing=False,
        score_precision="fp32",
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return five_shards(tmp_path_factory.mktemp("shards"), MODELS, CHANGES)


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
    """In bf16 its losses are those of replicas, and so are a convolutional net's, also with BatchNorm."""
    whole, parts = ({"name": name, "fsdp": True, **CHANGES} for name in ("whole", "parts"))
    legs = [(whole, None), (parts, 5), (parts, None)]
    others = {"bf16": {"precision": "bf16"}, "net": {"learner": "convolutional"}}
    for name, changes in others.items():
        legs += [
            ({**CHANGES, "steps": 3, "name": f"{name}-{cut}", "fsdp": cut, **changes}, None) for cut in (True, False)
        ]
    told = run_ranks(2, legs_of, folder, legs)
    assert isinstance(told[0], list), told[0]
    assert_like_one(folder, "whole")
    for key, value in weights_of(folder, "whole").items():
        assert (weights_of(folder, "parts")[key] == value).all(), key
    for name in others:
        for line, expected in zip(*(metrics_of(folder, f"{name}-{cut}") for cut in (True, False)), strict=True):
            assert line.get("loss") == pytest.approx(expected.get("loss"), rel=1e-3), name


def test_a_run_is_resumed_with_shards_and_without_by_any_number_of_processes(folder):
    sharded, plain = ({"name": "relay", "fsdp": fsdp, **CHANGES} for fsdp in (True, False))
    run_ranks(2, legs_of, folder, [(sharded, 4), (plain, 7)])
    train_in(Group(), folder, True, 10, None, plain)
    said = run_ranks(3, legs_of, folder, [(sharded, None)])[0][0]
    assert any("resumed after step 9" in line for line in said)
    assert_like_one(folder, "relay")


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before(folder):
    changes = {"name": "torn", "fsdp": True, **CHANGES}
    killed, other = run_ranks(2, ends, folder, False, 4, kills_next_save, changes)
    assert killed is None and other[0] == "RankError"
    said = run_ranks(2, legs_of, folder, [(changes, None)])[0][0]
    assert any("resumed after step 3" in line for line in said)
    assert_like_one(folder, "torn")


def test_what_stops_one_rank_stops_all(folder):
    text = f"stopped by {signal.Signals.SIGTERM.name} after step 5 of 12"
    first, second = run_ranks(2, troubles_of, folder, {**CHANGES, "fsdp": True})
    assert first == [("StoppedError", text, None), ("WriteError", "no more scores", 1)]
    assert second == [("StoppedError", text, 0), ("WriteError", "no more scores", None)]
    assert (folder / "runs/stopped/checkpoints/resume-000000005").is_dir()


def test_what_does_not_go_with_shards_is_refused(folder):
    with pytest.raises(SpecError, match="start them with torchrun"):
        go(folder, fsdp=True, **{**CHANGES, "name": "alone"})
    assert not (folder / "runs/alone").exists()
    for changes, said in (
        ({"compile": True}, "leave --compile out"),
        ({"optimizer": "lamb"}, "take one of adam, adamw"),
        (
            {"policy": "rho", "score_ahead": 1, "online": None, "reference_scores": "scores"},
            "--score-ahead copies the learner",
        ),
        ({"sync_bn": True}, "--fsdp was not tried with --sync-bn"),
        ({"accumulate": 9}, "--accumulate is 9; with --fsdp expected at most a process's share of --batch-size, 8"),
    ):
        with pytest.raises(SpecError, match=re.escape(said)):
            refuse_shards(options_of(folder, fsdp=True, **changes), 2)
