"""The public face, as other people's loops use it: on real digits, with modules of plain torch."""

from __future__ import annotations

import subprocess
import sys

import curate
import duckdb
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.commands import silent
from torch import nn


@pytest.fixture
def here(digits, monkeypatch):
    """The working folder of a user: curate.toml, data, scores."""
    monkeypatch.chdir(digits.root)
    return digits


def small(seed=0, size=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 32), nn.ReLU(), nn.Linear(32, 10))


def pixels(view):
    return view.permute(0, 3, 1, 2).float() / 255


def my_losses(module, batch):
    return F.cross_entropy(module(pixels(batch.views["learner"])), batch.targets, reduction="none")


def test_targets_of_one_type(here, pairs):
    batch = next(iter(batches_of(16)))
    assert batch.labels is batch.targets and batch.take(torch.tensor([3, 1])).labels.tolist() == [
        int(batch.targets[3]),
        int(batch.targets[1]),
    ]
    with pytest.raises(curate.CurateError, match=r"these examples have labels: take batch\.labels"):
        _ = batch.captions
    views = {"learner": curate.Geometry(size=8)}
    pair = next(iter(curate.SuperBatches("pairs", 8, views=views, config=pairs.config)))
    assert pair.captions is pair.targets and len(pair.captions) == 8
    with pytest.raises(curate.CurateError, match=r"these examples have captions: take batch\.captions"):
        _ = pair.labels


def batches_of(size=256, **options):
    return curate.SuperBatches("digits", size, views={"learner": curate.Geometry(size=8)}, scores="scores", **options)


def test_every_name_of_the_face_is_there_and_importing_it_is_light():
    assert all(getattr(curate, name) is not None for name in curate.__all__)
    code = (
        "import sys, curate; assert not {'torch', 'apache_beam', 'numpy'} & set(sys.modules); print(len(dir(curate)))"
    )
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) > 20


def test_lookup_gives_the_stored_losses_and_proves_them(here):
    table = curate.open_scores("scores")
    rows = table.read(["shard", "key", "loss", "label"]).to_pylist()[100:400:7]
    shards, keys, labels = ([row[name] for row in rows] for name in ("shard", "key", "label"))
    loss_B = table.lookup(shards, keys, targets=torch.tensor(labels))
    assert loss_B.dtype == torch.float32
    np.testing.assert_array_equal(loss_B.numpy(), np.array([row["loss"] for row in rows], dtype=np.float32))
    # A class name as it is stored proves it too.
    assert torch.equal(table.lookup(shards, keys, targets=[str(label) for label in labels]), loss_B)

    labels[3] = (labels[3] + 1) % 10
    with pytest.raises(curate.CurateError) as error:
        table.lookup(shards, keys, targets=labels)
    assert type(error.value).__name__ == "JoinError"
    for said in (shards[3], keys[3], f"label is {labels[3]}", f"table has {(labels[3] - 1) % 10}"):
        assert said in str(error.value)

    with pytest.raises(curate.CurateError, match="key 'nobody': expected a score"):
        table.lookup(["00000"], ["nobody"], targets=[1])
    assert torch.isnan(table.lookup(["00000", "99999"], ["nobody", "x"], targets=[1, 2], on_missing="nan")).all()


def test_lookup_of_captions(pairs, tmp_path):
    from curate.pipelines.score_reference import score_reference

    table = curate.open_scores(score_reference(pairs.options(tmp_path), silent).folder)
    rows = table.read(["shard", "key", "loss"]).to_pylist()
    captions = [pairs.captions[row["key"]] for row in rows]
    shards, keys = ([row[name] for row in rows] for name in ("shard", "key"))
    losses = table.lookup(shards, keys, targets=[f"{caption}\n" for caption in captions])
    np.testing.assert_array_equal(losses.numpy(), np.array([row["loss"] for row in rows], dtype=np.float32))
    captions[5] = "the digit eleven"
    with pytest.raises(curate.CurateError, match=f"key '{keys[5]}'.*the digit eleven"):
        table.lookup(shards, keys, targets=captions)


def test_the_loop_of_the_documentation(here):
    online = small()
    batches = batches_of(seed=0)
    selector = curate.Selector("learnability", 64, seed=0)
    for step, batch in enumerate(batches):
        with torch.no_grad():
            online_loss = F.cross_entropy(online(pixels(batch.views["learner"])), batch.targets, reduction="none")
        chosen = selector(online_loss=online_loss, reference_loss=batch.reference_loss)
        assert chosen.index.shape == (64,) and chosen.index.dtype == torch.int64
        sub = batch.take(chosen.index)
        assert sub.keys == [batch.keys[i] for i in chosen.index.tolist()]
        assert sub.views["learner"].shape == (64, 8, 8, 3) and sub.targets.shape == (64,)
        # What was chosen is more learnable than what was not: the scores say so.
        assert chosen.score[chosen.index].mean() > chosen.score.mean()
        if step == 2:
            break
    batches.close()


def online_model(seed=0):
    module = small(seed)
    return curate.OnlineModel(module, my_losses, torch.optim.SGD(module.parameters(), lr=0.1))


def trained(subs, learner, optimizer, steps):
    """One learner's losses over so many steps: what a user's loop does."""
    found = []
    for step, sub in enumerate(subs, start=1):
        loss = F.cross_entropy(learner(pixels(sub.views["learner"])), sub.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append((float(loss.detach()), sub.keys))
        if step == steps:
            return found
    raise AssertionError("the stream ended")


def test_sub_batches_score_choose_and_train_the_online_model(here):
    online, learner = online_model(), small(1)
    before = [p.clone() for p in online.module.parameters()]
    subs = curate.SubBatches(batches_of(), curate.Selector("learnability", 64), online=online)
    found = trained(subs, learner, torch.optim.SGD(learner.parameters(), lr=0.5), 40)
    subs.close()
    assert any(not torch.equal(a, b) for a, b in zip(before, online.module.parameters(), strict=True))
    assert np.mean([loss for loss, _ in found[-5:]]) < 0.7 * np.mean([loss for loss, _ in found[:5]])


def test_a_loop_resumes_to_the_same_end(here):
    def parts(seed=0):
        learner = small(1)
        online = online_model()
        subs = curate.SubBatches(batches_of(), curate.Selector("learnability", 64, seed=3), online=online)
        return subs, online, learner, torch.optim.SGD(learner.parameters(), lr=0.1)

    subs, online, learner, optimizer = parts()
    whole = trained(subs, learner, optimizer, 10)
    subs, online, learner, optimizer = parts()
    first = trained(subs, learner, optimizer, 4)
    saved = {"subs": subs.state_dict(), "online": online.state_dict()}
    state = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
    subs.close()

    subs, online, other, optimizer = parts()
    subs.load_state_dict(saved["subs"])
    online.load_state_dict(saved["online"])
    other.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    assert first + trained(subs, other, optimizer, 6) == whole


def test_an_online_model_may_train_on_another_loss_than_it_scores_with(here):
    online = online_model()
    online.training_loss = curate.OnlineModel(
        online.module,
        my_losses,
        online.optimizer,
        training_loss=lambda module, batch: 0 * my_losses(module, batch).sum(),
    ).training_loss
    batch = next(iter(batches_of()))
    before, scored = [p.clone() for p in online.module.parameters()], online.score(batch)
    assert scored.shape == (256,) and scored.min() > 0
    assert online.step(batch) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, online.module.parameters(), strict=True))


@pytest.mark.parametrize("policy", ["uniform", "easy-reference"])
def test_policies_that_need_no_model(here, policy):
    subs = curate.SubBatches(batches_of(), curate.Selector(policy, 64))
    sub = next(iter(subs))
    subs.close()
    assert len(sub) == 64 and len(sub.drawn) == 256
    with pytest.raises(curate.CurateError, match="scores with a model; give online or scorer"):
        curate.SubBatches(batches_of(), curate.Selector("hard-learner", 64))


def test_a_policy_of_ones_own(here):
    middle = curate.Policy(
        "middle", lambda known: -(known.reference_B - known.reference_B.median()).abs(), reference="loss"
    )
    subs = curate.SubBatches(batches_of(), curate.Selector(middle, 64, sampler="topk"))
    sub = next(iter(subs))
    subs.close()
    drawn = sub.drawn.reference_loss
    distance = (drawn - drawn.median()).abs()
    assert distance[sub.selection.index].max() <= distance.sort().values[63]


def test_a_score_that_is_not_finite_is_told(here):
    online = online_model()
    with torch.no_grad():
        online.module[1].weight.fill_(torch.inf)
    subs = curate.SubBatches(batches_of(), curate.Selector("learnability", 64), online=online)
    with pytest.raises(curate.CurateError, match="a score is nan or infinite"):
        next(iter(subs))
    subs.close()


def test_the_ledger_measures_any_callable_and_stops_a_budget(here):
    learner, online = small(1), small()
    batch = next(iter(batches_of()))
    ledger = curate.Ledger(curate.open_scores("scores"))
    # One linear layer of n x m is 2 n m FLOPs an example; a training step is three of them, but for the first layer, whose
    # input needs no gradient.
    forward = 2 * (192 * 32 + 32 * 10)
    scored = ledger.measure("online_score", lambda: my_losses(online, batch))
    assert scored == 256 * forward
    sub = batch.take(torch.arange(64))
    trained_flops = ledger.measure("learner_train", lambda: my_losses(learner, sub).mean().backward())
    assert trained_flops == 64 * (3 * forward - 2 * 192 * 32)
    assert ledger.steps_within(10.5 * (scored + trained_flops)) == 10
    assert ledger.steps_within("20TF") == int(20e12 // (scored + trained_flops))
    for _ in range(3):
        ledger.add_step()
    assert ledger.spent == 3 * (scored + trained_flops)
    assert ledger.regimes()["pretrained_reference"] == ledger.spent + ledger.reference_score > ledger.spent
    with pytest.raises(curate.CurateError, match="no line 'scoring'; expected learner_train"):
        ledger.measure("scoring", lambda: None)


def test_a_selection_log_needs_no_run(here, tmp_path):
    log = curate.SelectionLog(tmp_path / "log", every=2)
    subs = curate.SubBatches(batches_of(), curate.Selector("learnability", 64), online=online_model())
    for step, sub in enumerate(subs, start=1):
        log.write(step, sub.drawn, sub.selection)
        if step == 5:
            break
    subs.close()
    log.flush()
    found = duckdb.sql(
        f"SELECT step, count(*), sum(selected::INT) FROM '{tmp_path}/log/*.parquet' GROUP BY 1 ORDER BY 1"
    )
    assert found.fetchall() == [(2, 256, 64), (4, 256, 64)]
    log.cut_after(3)
    assert not list((tmp_path / "log").glob("*.parquet"))


def test_a_batch_on_a_gpu_can_be_moved_there_again():
    """A framework moves what it is given to its device. Only memory of the host can be pinned."""

    class OnGpu:
        device = torch.device("cuda:0")

        def is_pinned(self):
            return False

        def pin_memory(self):
            raise RuntimeError("cannot pin a CUDA tensor")

        def to(self, device, non_blocking):
            return self

    view = OnGpu()
    batch = curate.SuperBatch(shards=["0"], keys=["a"], views={"learner": view}, targets=["a caption"])
    assert batch.to("cuda:0").views["learner"] is view


def test_works_without_curate_toml(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pattern = str(digits.root / "data" / "digits" / "train" / "*.tar")
    from curate.datasets.spec import spec_from_table

    spec = spec_from_table("mine", {"train": pattern, "classes": 10})
    batch = next(iter(curate.SuperBatches(spec, 32, views={"v": curate.Geometry(size=8)})))
    assert batch.reference_loss is None and len(batch) == 32
