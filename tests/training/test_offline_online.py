"""The same weights and the same example give the same loss offline (Beam's worker) and online (the training job)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curate.pipelines.score_reference import score_reference
from curate.scoring import load_model, open_scores, score_batch
from curate.training.superbatch import SuperBatches
from support.commands import silent


@pytest.mark.parametrize("task", ["classification", "image-text"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 2e-2)])
def test_stored_loss_equals_the_online_loss_of_the_same_weights(task, precision, tolerance, digits, pairs, tmp_path):
    options = (digits if task == "classification" else pairs).options(tmp_path, precision=precision)
    table = open_scores(score_reference(options, silent).folder)
    model = load_model(options.reference, trained=True)
    # In training mode, as an online model is between its scorings: dropout and BatchNorm must not show.
    model.module.train()
    tokenize = {"own": model.tokenizer} if model.tokenizer else {}
    batch = next(
        iter(SuperBatches(options.dataset, 30, views={"own": model.geometry}, tokenize=tokenize, scores=table))
    )
    online = score_batch(model, batch.views["own"], batch.model_targets("own"), precision=precision, micro_batch=7).loss
    assert model.module.training
    assert len(set(batch.keys)) == 30
    np.testing.assert_allclose(online.numpy(), batch.reference_loss.numpy(), rtol=tolerance, atol=tolerance)
    # The comparison can fail: of other examples the losses differ.
    assert not np.allclose(online.numpy(), np.roll(batch.reference_loss.numpy(), 1), rtol=tolerance, atol=tolerance)


def test_scoring_leaves_batchnorm_statistics_alone(digits):
    model = load_model(digits.options("unused").reference)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.module.train()
    score_batch(model, torch.randint(0, 255, (16, 8, 8, 3), dtype=torch.uint8), torch.zeros(16, dtype=torch.int64))
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
