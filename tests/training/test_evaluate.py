from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from curate.errors import CurateError, FailuresError, ShardError, SpecError
from curate.scoring import load_model
from curate.scoring.evaluation import recall
from curate.scoring.ranks import ALONE
from curate.training.evaluate import evaluate
from support.rank_runs import measured
from support.ranks import run_ranks
from support.tars import replace_member, write_tar
from support.tiny import go, shard, write_toml


def slow_recall(query, answer, group, k):
    hits = 0
    for i in range(len(query)):
        similarities = [float(np.dot(query[i].double().numpy(), a.double().numpy())) for a in answer]
        nearest = sorted(range(len(answer)), key=lambda j: -similarities[j])[:k]
        hits += any(group[j] == group[i] for j in nearest)
    return hits / len(query)


def test_recall_equals_a_slow_computation():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(50, 8, generator=generator)
    text = image + torch.randn(50, 8, generator=generator)
    group = torch.arange(50) // 2
    got = recall(image, text, group, "i2t")
    assert got == {f"i2t_r{k}": pytest.approx(slow_recall(image, text, group.tolist(), k)) for k in (1, 5, 10)}
    assert got["i2t_r1"] < got["i2t_r10"]


def test_fewer_answers_than_k():
    assert recall(torch.eye(3), torch.eye(3), torch.arange(3), "x") == {"x_r1": 1.0, "x_r5": 1.0, "x_r10": 1.0}


def test_top1_equals_a_plain_loop(digits):
    from curate.datasets import decode, list_shards, read_shard

    model = load_model(digits.options("unused").reference)
    spec = digits.dataset()
    right = total = 0
    with torch.no_grad():
        for shard in list_shards(spec, "test"):
            for example in read_shard(spec, shard):
                pixels = torch.from_numpy(decode(example.image, model.geometry).copy())[None]
                right += int(model.module(model.normalize(pixels)).argmax()) == example.target
                total += 1
    quality = evaluate(model, spec, device=torch.device("cpu"), precision="fp32")
    assert total == quality["test_examples"] == 597
    assert quality["top1"] == pytest.approx(right / total)


def test_ranks_share_the_batches_and_measure_the_same(digits, pairs):
    pairs_options = pairs.options("unused")
    captioned = replace(pairs_options.dataset, test=pairs_options.dataset.train)
    both = [(digits.options("unused").reference, digits.dataset()), (pairs_options.reference, captioned)]
    for found in run_ranks(3, measured, both):
        for quality, alone in zip(found, measured(ALONE, both), strict=True):
            assert quality == pytest.approx(alone)


@pytest.fixture
def tested(tmp_path):
    """A data set whose test split is to be spoilt."""
    shard(tmp_path / "a.tar", range(64))
    shard(tmp_path / "test.tar", range(500, 600))
    write_toml(tmp_path, test="test.tar")
    return tmp_path


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT = {
    "missing": (lambda path: path.unlink(), ShardError, "^data set '[a-z]+', test split: no shard matches"),
    "empty": (lambda path: write_tar(path, []), CurateError, "no example can be used|no example"),
    "cut": (cut_in_half, ShardError, "test split: .*cut or damaged"),
    "no images": (
        lambda path: write_tar(path, [(f"{i}.{e}", b"7") for i in range(3) for e in ("png", "cls")]),
        SpecError,
        "no example can be used",
    ),
    "two of a hundred bad": (
        lambda path: replace_member(path, {"500.cls": b"horse", "501.cls": b"cow"}),
        FailuresError,
        r"2 of 100 examples are bad \(allowed 1\.0%: --max-failures\)",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_test_split_that_cannot_be_used_is_found_before_the_first_step(tested, how):
    spoil, kind, told = SPOILT[how]
    spoil(tested / "test.tar")
    with pytest.raises(kind, match=told):
        go(tested, evaluate=True)
    assert not (tested / "runs/run").exists()
    assert go(tested)["steps"] == 12  # without evaluation nobody reads it


def test_quality_on_fewer_examples_is_said(tested):
    replace_member(tested / "test.tar", {"500.cls": b"horse", "501.png": b"no image"})
    told = []
    summary = go(tested, evaluate=True, max_failures=0.05, report=told.append)
    assert summary["quality"]["test_examples"] == 98
    assert summary["quality"]["test_failures"] == 2
    assert told[-1].endswith("test_examples 98, test_failures 2")


def test_a_run_that_was_trained_and_not_evaluated_has_a_summary_and_is_evaluated_by_a_resume(tested):
    replace_member(tested / "test.tar", {f"{i}.png": b"no image" for i in range(500, 510)})  # found when decoded
    with pytest.raises(FailuresError, match=r"trained, its weights are kept, but not evaluated: .* 10 of 100"):
        go(tested, evaluate=True)
    summary = json.loads((tested / "runs/run/summary.json").read_text())
    assert summary["quality"] == {} and "10 of 100" in summary["not_evaluated"]
    assert not list((tested / "runs/run/checkpoints").glob("resume-*"))
    again = go(tested, resume=True, evaluate=True, max_failures=0.2)
    assert again["quality"]["test_examples"] == 90
    assert json.loads((tested / "runs/run/summary.json").read_text()) == again
    assert "not_evaluated" not in again and again["outside_the_ledger"]["evaluation"] > 0
