"""What only a GPU can show: resumed runs, scoring beside the learner in a stream of its own, and the same scores as a CPU's."""

from itertools import islice

import numpy as np
import pytest
import torch
from curate import OnlineModel, Selector, SubBatches, SuperBatches, open_scores
from curate.datasets import Geometry
from curate.datasets.slabs import Slabs
from curate.pipelines.score_reference import score_reference
from curate.training import train
from curate.training.copies import Copies, Pinned
from support.commands import silent
from support.runs import left_by
from support.tiny import cut_after
from torch import nn
from torch.nn.functional import cross_entropy

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(600),
]
CUDA = torch.device("cuda")


def options_of(digits, out, **changes):
    return digits.run_options(out, **{"compile": False, "deterministic": True, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_ahead": 2},
        {"precision": "bf16", "compile": True},
        {"precision": "bf16", "compile": True, "score_ahead": 2},
        {"accumulate": 2, "ema": 0.9, "clip_grad": 1.0},
        {"augment": "crop-flip", "policy": "rho", "online": None},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()) or "plain",
)
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(digits, tmp_path, changes):
    train(options_of(digits, tmp_path / "whole", **changes), config=digits.config, report=silent)
    with cut_after(8):
        train(options_of(digits, tmp_path / "cut", **changes), config=digits.config, report=silent)
    train(options_of(digits, tmp_path / "cut", **changes), config=digits.config, report=silent, resume=True)
    whole, cut = left_by(tmp_path / "whole/run"), left_by(tmp_path / "cut/run")
    for name in whole["weights"]:
        assert cut["weights"][name] == whole["weights"][name], name
    assert cut["selections"] == whole["selections"]
    assert cut["metrics"] == whole["metrics"]


def test_scores_are_those_of_a_cpu(digits, tmp_path):
    summary = score_reference(digits.options(tmp_path), silent)  # on the GPU; the fixture's table may be of it too
    table = open_scores(summary.folder)
    loss_N, rows = [], 0
    batches = SuperBatches(digits.dataset(), 100, views={"image": Geometry(size=8)}, scores=summary.folder)
    from curate.scoring.loading import find_model, load_model

    model = load_model(find_model(digits.reference, task="classification", num_classes=10, config=digits.config))
    from curate.scoring.forward import score_batch

    for batch in islice(batches, 3):
        stored = table.lookup(batch.shards, batch.keys, targets=batch.targets)
        here = score_batch(model, batch.views["image"], batch.targets, precision="fp32").loss
        loss_N.append((stored - here).abs().max())
        rows += len(batch)
    batches.close()
    assert rows == 300
    assert float(torch.stack(loss_N).max()) < 2e-5


class Slow(nn.Module):
    """Its forward pass keeps the device busy for milliseconds after the host has gone on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(192, 4096), *(nn.Linear(4096, 4096) for _ in range(20)))
        self.head = nn.Linear(4096, 10)

    def forward(self, pixels):
        x = pixels.flatten(1).float() / 255
        for _ in range(10):
            y = self.body(x)
        return self.head(y)


def online_of(seed=3):
    torch.manual_seed(seed)
    module = Slow().to(CUDA)
    losses = lambda m, batch: cross_entropy(m(batch.views["image"]), batch.targets, reduction="none")  # noqa: E731
    return OnlineModel(module, losses, torch.optim.SGD(module.parameters(), lr=0.05))


def chosen_of(digits, beside):
    """Losses by which each step chose. Where not `beside`, the host waits for the device whenever it may."""
    batches = SuperBatches(digits.dataset(), 240, views={"image": Geometry(size=8)})
    online = online_of()
    subs = SubBatches(batches, Selector("hard-learner", 48, seed=5), online=online, score_ahead=2, device=CUDA, last=12)
    if not beside:
        step = online.step

        def waiting(batch):
            torch.cuda.synchronize()
            found = step(batch)
            torch.cuda.synchronize()
            return found

        online.step = waiting
        begin = subs._thread.begin

        def begun(score):
            found = begin(score)
            subs._thread.wait()
            torch.cuda.synchronize()
            return found

        subs._thread.begin = begun
    found = [sub.selection.online_loss.cpu().numpy() for sub in islice(subs, 12)]
    subs.close()
    return found


@pytest.mark.parametrize("decode_processes", [0, 1])
@pytest.mark.parametrize("policy", ["hard-learner", "uniform"])
def test_copies_beside_the_work_are_those_in_turn_with_it(digits, monkeypatch, policy, decode_processes):
    """Each super-batch lies in memory that is used again as soon as it may be, on the host and on the device."""

    def sums(beside):
        with monkeypatch.context() as patch:
            if not beside:  # each copy is over before anything else begins
                patch.setattr(Copies, "begin", lambda self, batch: None)
                patch.setattr(Copies, "arrived", lambda self, batch: synchronous(batch.to(CUDA)))
            views = {"image": Geometry(size=8, resampling="pillow")}
            batches = SuperBatches(
                digits.dataset(), 240, views=views, cache_bytes=0, decode_processes=decode_processes, seed=1
            )
            online = online_of()
            scored = {} if policy == "uniform" else {"online": online}
            found = []
            for sub in islice(SubBatches(batches, Selector(policy, 48, seed=5), device=CUDA, **scored), 40):
                pixels = sub.views["image"].to(torch.int64)
                if policy == "uniform":
                    online.step(sub)
                found.append((pixels * torch.arange(1, 193, device=CUDA).view(8, 8, 3)).sum())
            batches.close()
            return [int(one) for one in found]

    def synchronous(batch):
        torch.cuda.synchronize()
        return batch

    assert sums(beside=True) == sums(beside=False)


def test_memory_that_processes_share_is_pinned_and_unpinned():
    slabs = Slabs(Pinned(torch.cuda.current_device()))
    array, _ = slabs.take((4, 1 << 20))
    pixels = torch.from_numpy(array)
    assert pixels.is_pinned() and pixels[2:].is_pinned()
    array[:] = 7
    assert int(pixels.to(CUDA, non_blocking=True).sum(dtype=torch.int64)) == 7 * (4 << 20)
    torch.cuda.synchronize()
    del array, pixels
    slabs.take((5, 1 << 20))  # in its place
    assert slabs.held == 5 << 20


def test_what_is_scored_ahead_does_not_see_the_steps_beside_it(digits):
    alone = chosen_of(digits, beside=False)
    for _ in range(3):
        for step, (a, b) in enumerate(zip(chosen_of(digits, beside=True), alone, strict=True)):
            np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=f"step {step + 1}")
