"""The contrastive training losses against a slow float64 form, and against open_clip's own where nothing is masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curate.scoring.contrastive import contrastive_loss
from curate.scoring.loading import load_model
from curate.scoring.losses import identical_captions
from open_clip.loss import ClipLoss, SigLipLoss


class Fake:
    """All that the loss asks of a model: whether it has a bias."""

    def __init__(self, sigmoid):
        self.module = torch.nn.Module()
        if sigmoid:
            self.module.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))


def outputs(B, sigmoid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        torch.nn.functional.normalize(torch.randn(B, 6, generator=generator), dim=-1).requires_grad_() for _ in range(2)
    )
    return {"image_features": image, "text_features": text, "logit_scale": torch.tensor(7.0)} | (
        {"logit_bias": torch.tensor(-3.0)} if sigmoid else {}
    )


def slow(out, tokens, sigmoid):
    image, text = (out[f"{side}_features"].detach().double().numpy() for side in ("image", "text"))
    z = 7.0 * image @ text.T + (-3.0 if sigmoid else 0.0)
    B, total = len(z), 0.0
    rows = [tuple(row) for row in tokens.tolist()]
    for i in range(B):
        negatives = [j for j in range(B) if j != i and rows[j] != rows[i]]
        if sigmoid:
            total += np.log1p(np.exp(-z[i, i])) + sum(np.log1p(np.exp(z[i, j])) for j in negatives)
        else:
            for line in (z[i], z[:, i]):
                total += (np.log(np.exp(line[[i, *negatives]]).sum()) - line[i]) / 2
    return total / B


@pytest.mark.parametrize("sigmoid", [False, True])
def test_identical_captions_are_no_negatives(sigmoid):
    tokens = torch.tensor([[1, 2, 0], [1, 3, 0], [1, 2, 0], [2, 1, 0], [1, 2, 0], [5, 5, 5]])
    out = outputs(6, sigmoid)
    loss = contrastive_loss(Fake(sigmoid))(out, tokens)
    assert float(loss.detach()) == pytest.approx(slow(out, tokens, sigmoid), rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(out[f"{side}_features"].grad).all() for side in ("image", "text"))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_without_repeats_it_is_open_clips_own(sigmoid):
    out = outputs(8, sigmoid, seed=1)
    tokens = torch.arange(8)[:, None].repeat(1, 4)
    own = SigLipLoss() if sigmoid else ClipLoss()
    assert torch.equal(contrastive_loss(Fake(sigmoid))(out, tokens), own(*out.values()))


def test_the_hash_tells_rows_apart_as_equality_does():
    tokens = torch.randint(0, 3, (200, 4), generator=torch.Generator().manual_seed(0))
    same = (tokens[:, None] == tokens[None]).all(-1) & ~torch.eye(200, dtype=torch.bool)
    assert same.any() and torch.equal(identical_captions(tokens), same)


@pytest.mark.parametrize("name", ["clip", "untrained-clip"])
def test_a_batch_of_one_caption_teaches_nothing_wrong(name, pairs):
    """Every picture of one and the same caption: the softmax loss is zero, and stays finite."""
    from curate.scoring.loading import find_model

    model = load_model(find_model(name, task="image-text", config=pairs.config))
    tokens = model.tokenize(["the digit one"] * 4)
    out = model.module(torch.zeros(4, 3, 32, 32), tokens)
    assert float(contrastive_loss(model)(out, tokens).detach()) == pytest.approx(0, abs=1e-6)
