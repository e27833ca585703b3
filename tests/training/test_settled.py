"""What the options leave open is settled when a run begins, by the hardware and by how much there will be to write."""

from __future__ import annotations

import json

import pytest
import torch
from curate.scoring.forward import float32_products
from curate.training import RunOptions, folder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def hardware(monkeypatch):
    """A machine that gains by bf16."""
    monkeypatch.setattr(folder, "best_precision", lambda device: "bf16")


def options(**changes):
    return RunOptions.of(**{"dataset": "d", "learner": "l", "steps": 100, **changes})


def begun(run, manifest, config=None):
    run.mkdir(exist_ok=True)
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "config.json").write_text(json.dumps(config or {}))
    return run


def test_precision_is_the_hardwares_and_scoring_follows_it(tmp_path):
    assert folder.settled_precisions(tmp_path, options(), CPU) == ("bf16", "bf16")
    assert folder.settled_precisions(tmp_path, options(precision="fp32"), CPU) == ("fp32", "fp32")
    assert folder.settled_precisions(tmp_path, options(score_precision="fp32"), CPU) == ("bf16", "fp32")


def test_a_run_that_began_goes_on_in_its_precisions(tmp_path):
    settings = {"score precision": "bf16"}
    run = begun(
        tmp_path / "new", {"precision": "fp32", "began": {"settings": settings, "score_table": {"precision": "fp32"}}}
    )
    assert folder.settled_precisions(run, options(), CPU) == ("fp32", "bf16")
    older = begun(
        tmp_path / "older", {"precision": "bf16", "began": {"settings": {}, "score_table": {"precision": "fp32"}}}
    )
    assert folder.settled_precisions(older, options(), CPU) == ("bf16", "fp32")
    oldest = begun(tmp_path / "oldest", {"precision": "fp32"})
    assert folder.settled_precisions(oldest, options(), CPU) == ("fp32", "fp32")


def test_selections_are_recorded_within_a_budget_of_bytes(tmp_path):
    def every(steps, batch_size=4096, **changes):
        known = {"policy": "hard-learner", "online": "o", "batch_size": batch_size, "filter_ratio": 0.8}
        filtered = options(steps=steps, **{**known, **changes})
        return folder.settled_selections(tmp_path / "run", filtered, steps)

    assert every(1000) == 1
    assert every(100_000) == 74  # 100,000 x 20,480 x 36 bytes are 74 GB
    assert every(100_000, selections_every=5) == 5
    assert every(100_000, policy="uniform") == 1  # which records none
    begun(tmp_path / "run", {}, {"selections_every": 3})
    assert every(100_000) == 3


def test_on_a_gpu_float32_products_follow_the_precision():
    before = torch.get_float32_matmul_precision()
    for precision, expected in (("bf16", "high"), ("fp32", "highest")):
        with float32_products(torch.device("cuda"), precision):
            assert torch.get_float32_matmul_precision() == expected
            assert torch.backends.cudnn.allow_tf32 == (precision == "bf16")
        assert torch.get_float32_matmul_precision() == before
    with float32_products(CPU, "bf16"):
        assert torch.get_float32_matmul_precision() == before
