from __future__ import annotations

import numpy as np
import pytest
import torch
from curate.scoring import load_model
from curate.scoring.evaluation import recall
from curate.training.evaluate import evaluate


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
