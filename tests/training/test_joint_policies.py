"""Short real runs that choose pairs jointly, from the embeddings of a real score table."""

from __future__ import annotations

import copy
import json
import shutil
from itertools import islice

import duckdb
import numpy as np
import pytest
import torch
from curate.datasets.decoding import Geometry
from curate.datasets.spec import Config, find_dataset
from curate.errors import SpecError, TableError
from curate.pipelines.score_reference import score_reference
from curate.scoring import open_scores
from curate.scoring.joint import select_jointly
from curate.scoring.losses import Pairs
from curate.training import RunOptions, train
from curate.training.group import Group
from curate.training.sub import SubBatches
from curate.training.superbatch import SuperBatches
from support.commands import silent
from support.prepared import TINY_CLIP
from support.rank_runs import trained
from support.rank_work import choose_jointly
from support.ranks import run_ranks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

B, b = 20, 5


@pytest.fixture(scope="module")
def embedded(pairs, tmp_path_factory):
    """The pairs scored with their embeddings: the table's folder."""
    out = tmp_path_factory.mktemp("embedded")
    return score_reference(pairs.options(out, embeddings=True), silent).folder


@pytest.fixture(scope="module")
def config(pairs):
    small, biased = copy.deepcopy(TINY_CLIP), copy.deepcopy(TINY_CLIP)
    small["vision_cfg"]["width"] = small["text_cfg"]["width"] = 16
    small["vision_cfg"]["head_width"] = 8
    biased["init_logit_bias"] = -10
    models = {**pairs.config.models, "small": {"config": small}, "biased": {"config": biased}}
    return Config(pairs.config.path, pairs.config.datasets, models)


def options_with(out, table, **changes):
    options = dict(
        dataset="pairs",
        learner="untrained-clip",
        policy="jest",
        reference_scores=table,
        steps=4,
        batch_size=b,
        filter_ratio=0.75,
        chunks=3,
        precision="fp32",
        out=str(out),
        name="run",
        evaluate=False,
    )
    return {**options, **changes}


def run(config, out, table, **changes):
    return train(RunOptions.of(**options_with(out, table, **changes)), config=config, report=silent)


def selections(out):
    """Every column as a numpy array [steps, B]."""
    found = duckdb.sql(f"SELECT * FROM '{out}/run/selections/*.parquet' ORDER BY step, shard, key").fetchnumpy()
    return {name: np.asarray(column).reshape(-1, B) for name, column in found.items()}


@pytest.mark.parametrize(
    ("policy", "changes"),
    [("jest", {"online": "small"}), ("jest", {}), ("jest-easy", {}), ("acid", {"learner": "small"})],
)
def test_every_flop_of_choosing_jointly_is_in_the_ledger(policy, changes, config, embedded, tmp_path, monkeypatch):
    # A fused kernel of attention, taken in evaluation mode, is one that this outer counter does not know.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    # Nor does it know what other threads compute: the choice is made in this one.
    monkeypatch.setattr(SubBatches, "_seen_before_the_choice", lambda self: None)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        summary = run(config, tmp_path, embedded, policy=policy, **changes)
    lines = summary["ledger"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    per_step = manifest["flops_per_step"]
    spent = lines["learner_train"] + lines["online_score"] + lines["online_train"]
    assert spent == 4 * sum(per_step.values())
    assert lines["online_score"] > 0 and (lines["online_train"] > 0) == ("online" in changes)
    # Measuring costs on shapes alone shows in this counter too: count it by itself.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as more:
        summary = run(config, tmp_path / "more", embedded, policy=policy, steps=9, **changes)
    assert more.get_total_flops() - counter.get_total_flops() == 5 * sum(per_step.values())
    assert (selections(tmp_path)["selected"].sum(1) == [b] * 4).all()


def test_embeddings_reach_the_super_batch_of_their_own_pair(pairs, embedded):
    table, dataset = open_scores(embedded), find_dataset("pairs", pairs.config)
    stored = {name: table.shard(name, embeddings=True) for name in table.shard_names()}
    batches = SuperBatches(dataset, 32, views={"learner": Geometry(size=32)}, scores=table, embeddings=True)
    for batch in islice(batches, 3):
        image, text = batch.reference_pairs
        for i, (shard, key) in enumerate(zip(batch.shards, batch.keys, strict=True)):
            row = stored[shard].keys.index(key)
            assert (image[i].numpy() == stored[shard].image_embedding[row]).all()
            assert (text[i].numpy() == stored[shard].text_embedding[row]).all()
    batches.close()


def test_what_jest_easy_chooses_follows_from_the_table_alone(pairs, config, embedded, tmp_path):
    run(config, tmp_path, embedded, policy="jest-easy", sampler="topk", steps=3)
    table = open_scores(embedded)
    stored = {name: table.shard(name, embeddings=True) for name in table.shard_names()}
    found = selections(tmp_path)
    for shards, keys, selected, score in zip(*(found[c] for c in ("shard", "key", "selected", "score")), strict=True):
        at = [(stored[shard], stored[shard].keys.index(key)) for shard, key in zip(shards, keys, strict=True)]
        image, text = (
            torch.from_numpy(np.stack([getattr(scores, name)[row] for scores, row in at]))
            for name in ("image_embedding", "text_embedding")
        )
        captions = [pairs.captions[key] for key in keys]
        group = torch.tensor([captions.index(caption) for caption in captions])
        reference = Pairs(image, text, table.manifest["scale"], 0.0, group)
        expected = select_jointly(None, reference, b, loss="softmax", n_chunks=3, sampler="topk")
        assert np.flatnonzero(selected).tolist() == expected.index.tolist()
        np.testing.assert_allclose(score, expected.score.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_model_has_nothing_to_learn_from_itself(config, pairs, tmp_path, loss):
    """Scored by the reference itself, offline and online losses are one: float16 is all that lies between them."""
    biased = loss == "sigmoid"
    models = dict(config.models)
    if biased:
        clip = {**TINY_CLIP, "init_logit_bias": -10}
        run_config = Config(config.path, config.datasets, {**models, "self": {"config": clip}})
        still = dict(policy="uniform", learner="self", reference_scores=None, lr=0.0, weight_decay=0.0, steps=1)
        run(run_config, tmp_path / "made", None, **still)
        models["self"] = {"config": clip, "weights": str(tmp_path / "made/run/checkpoints/learner.safetensors")}
    else:
        models["self"] = models["clip"]
    own = Config(config.path, config.datasets, models)
    from curate.scoring.loading import find_model

    reference = find_model("self", task="image-text", config=own)
    table = score_reference(pairs.options(tmp_path / "scores", embeddings=True, reference=reference), silent).folder
    run(own, tmp_path, table, learner="self", lr=0.0, weight_decay=0.0)
    rows = selections(tmp_path)
    assert np.abs(rows["online_loss"]).mean() > 0.1
    np.testing.assert_allclose(rows["online_loss"], rows["reference_loss"], atol=5e-3)
    np.testing.assert_allclose(rows["score"], 0.0, atol=5e-3)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_rows_and_choose_as_one_process(ranks):
    """To the bit, given the same embeddings."""
    alone = choose_jointly(Group())
    assert all(found == alone for found in run_ranks(ranks, choose_jointly))


def test_a_run_of_two_ranks_chooses_as_one_process(config, embedded, tmp_path):
    one = run(config, tmp_path / "one", embedded)
    options = options_with(tmp_path / "two", embedded)
    two, _ = run_ranks(2, trained, options, config)
    assert two["ledger"] == one["ledger"]
    ours, theirs = selections(tmp_path / "two"), selections(tmp_path / "one")
    assert all((ours[name] == theirs[name]).all() for name in ("key", "selected"))


def test_embeddings_that_the_table_lacks_are_made_in_the_run(config, embedded, tmp_path):
    shutil.copytree(embedded, tmp_path / "part")
    (tmp_path / "part" / "00001.parquet").unlink()
    common = dict(policy="jest-easy", sampler="topk")
    run(config, tmp_path / "whole", embedded, **common)
    summary = run(config, tmp_path / "made", str(tmp_path / "part"), on_missing="score", **common)
    assert summary["counts"]["scored_in_run"] == 20
    whole, made = selections(tmp_path / "whole"), selections(tmp_path / "made")
    assert (whole["key"] == made["key"]).all() and (whole["selected"] == made["selected"]).all()


def test_killed_and_resumed_runs_choose_the_same(config, embedded, tmp_path, monkeypatch):
    whole = run(config, tmp_path / "whole", embedded, steps=6)
    import curate.training.run as module

    def stop(step):
        if step == 4:
            raise KeyboardInterrupt

    loop = module.train_loop
    monkeypatch.setattr(module, "train_loop", lambda job: loop(job, after_step=stop))
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", embedded, steps=6, checkpoint_every=2)
    monkeypatch.setattr(module, "train_loop", loop)
    options = dict(steps=6, checkpoint_every=2)
    resumed = train(
        RunOptions.of(
            **json.loads((tmp_path / "cut/run/config.json").read_text())
            | {"checkpoint_every": options["checkpoint_every"]}
        ),
        config=config,
        resume=True,
        report=silent,
    )
    assert resumed["ledger"] == whole["ledger"]
    cut, undisturbed = selections(tmp_path / "cut"), selections(tmp_path / "whole")
    assert all((cut[name] == undisturbed[name]).all() for name in ("key", "online_loss", "score", "selected"))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"policy": "acid"}, SpecError, "reference larger than the learner.*take another joint policy"),
        ({"joint_loss": "sigmoid"}, TableError, "has no bias, which --joint-loss sigmoid needs"),
        ({"joint_loss": "both"}, SpecError, "--joint-loss is 'both'"),
        ({"chunks": 0}, SpecError, "--chunks is 0"),
        ({"reference_scores": None}, SpecError, "needs a score table"),
    ],
)
def test_what_a_joint_policy_lacks_is_said_before_it_starts(changes, error, words, config, embedded, tmp_path):
    with pytest.raises(error, match=words):
        run(config, tmp_path, embedded, **changes)
    assert not (tmp_path / "run").exists()


def test_a_table_without_embeddings_and_a_classifier_are_refused(config, pairs, digits, tmp_path):
    plain = score_reference(pairs.options(tmp_path / "scores"), silent).folder
    with pytest.raises(TableError, match="holds no embeddings; run score-reference with --embeddings"):
        run(config, tmp_path, plain)
    with pytest.raises(SpecError, match="is for image-text; this data set is classification"):
        run(digits.config, tmp_path, digits.scores, dataset="digits", learner="learner")
