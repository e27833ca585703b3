"""--sync-bn: what becomes of BatchNorm layers. SyncBatchNorm computes on GPUs alone; in one process it is BatchNorm."""

from __future__ import annotations

import pytest
import torch
from curate.errors import SpecError
from curate.scoring import ModelSpec, load_model
from curate.scoring.gradients import batch_norms
from curate.training.group import Group
from curate.training.trainee import Trainee
from support.rank_runs import ends, train_in
from support.ranks import run_ranks
from support.tiny import shard, write_toml

CPU = torch.device("cpu")


class Two(Group):
    """Two ranks, of which the other one does nothing."""

    def divide(self, module, **_):
        return module


def trainee(architecture, **settings):
    spec = dict(name="m", task="classification", num_classes=10, preprocessing={"size": 32})
    torch.manual_seed(0)
    return Trainee(
        load_model(ModelSpec(**spec, architecture=architecture)), lr=0.1, optimizer="sgd", device=CPU, **settings
    )


@pytest.mark.parametrize("architecture", ["small_resnet", "test_efficientnet"])  # the latter has layers of timm's own
def test_layers_are_replaced_and_nothing_else_changes(architecture):
    plain, synced = trainee(architecture), trainee(architecture, group=Two(0, 2))
    synced.sync_bn = True
    synced.join(6)
    layers = batch_norms(synced.module)
    assert layers and all(isinstance(layer, torch.nn.SyncBatchNorm) for layer in layers)
    trained = [p for group in synced.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in synced.module.parameters()} == {id(p) for p in trained}
    pixels = torch.randint(0, 255, (6, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    targets = torch.arange(6)
    for _ in range(2):
        assert torch.equal(synced.step(pixels, targets), plain.step(pixels, targets))
    ours, theirs = synced.module.state_dict(), plain.module.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = plain.model.normalize(pixels)
    assert torch.equal(synced.forward.eval()(images), plain.forward.eval()(images))


def test_more_parts_than_a_rank_has_examples_are_refused():
    made = trainee("small_resnet", group=Two(0, 2), accumulate=4)
    made.sync_bn = True
    with pytest.raises(SpecError, match="--accumulate is 4, and with --sync-bn expected at most 3"):
        made.join(3)


def test_on_the_cpu_it_is_refused_and_told_once_what_happens_without_it(tmp_path):
    shard(tmp_path / "a.tar", range(40))
    write_toml(tmp_path, train="a.tar")
    changes = {"policy": "hard-learner", "online": "learner", "filter_ratio": 0.5, "steps": 2}
    found = run_ranks(2, ends, tmp_path, False, None, None, {**changes, "sync_bn": True, "name": "synced"})
    assert all(kind == "SpecError" and "SyncBatchNorm runs on GPUs alone" in text for kind, text, _ in found)
    assert not (tmp_path / "runs/synced").exists()
    (_, told), _ = run_ranks(2, train_in, tmp_path, False, None, None, changes)
    lines = [line for line in told if "BatchNorm" in line]
    assert len(lines) == 1 and "of the learner and the online model normalise over each of 2 parts" in lines[0]
    # One process normalises over the whole batch anyway.
    _, told = train_in(Group(), tmp_path, False, None, None, {**changes, "sync_bn": True, "name": "alone"})
    assert not any("BatchNorm" in line for line in told)
