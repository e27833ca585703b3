"""Short real runs of every policy and both tasks."""

from __future__ import annotations

import json
import shutil

import duckdb
import pytest
import torch
from curate.datasets.spec import Config
from curate.errors import RunError, TableError
from curate.pipelines.score_reference import score_reference
from curate.training import RunOptions, train
from safetensors.torch import load_file
from support.commands import silent


def run(config, out, name="run", **changes):
    options = dict(learner="learner", steps=6, batch_size=8, precision="fp32", out=str(out), name=name, log_every=2)
    return train(RunOptions.of(**{**options, **changes}), config=config, report=silent)


@pytest.mark.parametrize("sampler", ["softmax", "topk"])
@pytest.mark.parametrize("policy", ["hard-learner", "easy-reference", "learnability", "rho"])
def test_the_chosen_have_higher_scores(policy, sampler, digits, tmp_path):
    run(
        digits.config,
        tmp_path,
        dataset="digits",
        policy=policy,
        online="scorer",
        reference_scores=digits.scores,
        sampler=sampler,
        filter_ratio=0.75,
    )
    steps = duckdb.sql(
        f"SELECT step, avg(score) FILTER (selected), avg(score) FILTER (NOT selected), min(score) FILTER (selected), "
        f"max(score) FILTER (NOT selected) FROM '{tmp_path}/run/selections/*.parquet' GROUP BY step"
    ).fetchall()
    assert len(steps) == 6
    if sampler == "topk":
        assert all(lowest >= highest for *_, lowest, highest in steps)
    else:
        assert sum(mean for _, mean, *_ in steps) > sum(rest for _, _, rest, *_ in steps)


@pytest.fixture
def incomplete(digits, tmp_path):
    """A copy of the score table without one of its shards."""
    folder = tmp_path / "incomplete"
    shutil.copytree(digits.table, folder)
    (folder / "00002.parquet").unlink()
    return str(folder)


@pytest.mark.parametrize(("on_missing", "scored", "usable"), [("score", 150, 900), ("skip", 0, 750)])
def test_missing_scores_are_made_or_skipped_and_counted(on_missing, scored, usable, digits, incomplete, tmp_path):
    def go(table, name, **changes):
        return run(
            digits.config,
            tmp_path,
            name,
            dataset="digits",
            policy="easy-reference",
            reference_scores=table,
            steps=14,
            batch_size=30,
            **changes,
        )

    partial, whole = go(incomplete, "partial", on_missing=on_missing), go(digits.scores, "whole")
    assert partial["counts"]["examples"] == usable
    assert partial["counts"].get("scored_in_run", 0) == scored
    extra = partial["ledger"]["reference_score"] - whole["ledger"]["reference_score"]
    assert (extra > 0) == (on_missing == "score")
    if on_missing == "score":
        # The losses made in the run are those that the table would have held, so the same examples are chosen.
        chosen = [
            duckdb.sql(
                f"SELECT step, shard, key FROM '{tmp_path}/{name}/selections/*.parquet' WHERE selected ORDER BY ALL"
            ).fetchall()
            for name in ("partial", "whole")
        ]
        assert chosen[0] == chosen[1]


def test_the_budget_pays_for_losses_that_are_made_in_the_run(digits, incomplete, tmp_path):
    config, budget = digits.config, 3e9
    options = dict(dataset="digits", policy="easy-reference", budget_flops=budget, batch_size=30, steps=None)
    made = run(config, tmp_path, "made", reference_scores=incomplete, on_missing="score", **options)
    whole = run(config, tmp_path, "whole", reference_scores=digits.scores, **options)
    lines, regimes = made["ledger"], made["regimes"]
    in_run = lines["reference_score"] - whole["ledger"]["reference_score"]
    assert in_run > 0
    assert regimes["foundation"] == lines["learner_train"] + lines["online_score"] + lines["online_train"] + in_run
    assert regimes["pretrained_reference"] == regimes["foundation"] + whole["ledger"]["reference_score"]
    assert regimes["nothing_amortised"] == regimes["pretrained_reference"] + lines["reference_train"]
    assert regimes["foundation"] <= budget
    assert made["steps"] < whole["steps"]
    assert regimes["foundation"] > 0.9 * budget
    last = json.loads((tmp_path / "made/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == made["steps"] and last["lr"] < 1e-4


def test_missing_scores_are_an_error_by_default(digits, incomplete, tmp_path):
    with pytest.raises(TableError, match="1 of 6 shards are not scored, first '00002'"):
        run(digits.config, tmp_path, dataset="digits", policy="easy-reference", reference_scores=incomplete)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sigmoid", [False, True])
def test_image_text(pairs, tmp_path, sigmoid):
    """CLIP's softmax loss, and SigLIP's where the model has a bias; scored by dot product, evaluated by retrieval."""
    table = score_reference(pairs.options(tmp_path / "scores"), silent).folder
    clip = json.loads((pairs.root / "clip.json").read_text())
    if sigmoid:
        clip |= {"init_logit_bias": -10}
    datasets = {"pairs": {**pairs.config.datasets["pairs"], "test": pairs.config.datasets["pairs"]["train"]}}
    config = Config(pairs.config.path, datasets, {**pairs.config.models, "learner": {"config": clip}})
    summary = run(
        config,
        tmp_path,
        dataset="pairs",
        policy="learnability",
        online="untrained-clip",
        reference_scores=table,
        steps=8,
    )
    quality = summary["quality"]
    assert quality["test_examples"] == 60
    assert 0 <= quality["image_to_text_r1"] <= quality["image_to_text_r5"] <= quality["image_to_text_r10"] <= 1
    assert summary["ledger"]["online_score"] > 0
    score, losses = duckdb.sql(
        f"SELECT sum(abs(score)), sum(abs(20 * (online_loss - reference_loss) - score)) "
        f"FROM '{tmp_path}/run/selections/*.parquet'"
    ).fetchall()[0]
    assert score > 0.01
    assert losses < 1e-3


def test_a_run_is_a_model(digits, tmp_path):
    """A run that starts from another's folder and learns nothing (lr 0) has its weights and its quality."""
    first = run(digits.config, tmp_path, "first", dataset="digits")
    still = dict(lr=0.0, weight_decay=0.0, steps=1)
    second = run(digits.config, tmp_path, "second", dataset="digits", learner=str(tmp_path / "first"), **still)
    weights = [load_file(tmp_path / name / "checkpoints" / "learner.safetensors") for name in ("first", "second")]
    for name, tensor in weights[0].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, weights[1][name]), name
    assert first["steps"] == 6
    assert second["steps"] == 1


def test_a_folder_that_is_no_run_is_left_alone(digits, tmp_path):
    mine = tmp_path / "photos" / "cat.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    with pytest.raises(RunError, match=r"holds 'cat.jpg' and is no run folder"):
        run(digits.config, tmp_path, "photos", dataset="digits")
    assert mine.read_bytes() == b"precious"


def test_a_learners_checkpoint_is_open_clips_own(pairs, tmp_path):
    """Plain open_clip loads it by path and gives the very same embeddings, and a run starts from one of open_clip's."""
    import open_clip
    from curate.scoring.loading import find_model, load_model

    run(pairs.config, tmp_path, dataset="pairs", learner="untrained-clip", steps=3)
    path = tmp_path / "run" / "checkpoints" / "learner.safetensors"
    open_clip.add_model_config(pairs.root / "clip.json")
    theirs = open_clip.create_model("clip", pretrained=str(path)).eval()
    ours = load_model(find_model(str(tmp_path / "run"), task="image-text", config=pairs.config))
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = open_clip.get_tokenizer("clip")(list(pairs.captions.values())[:5])
    with torch.inference_mode():
        assert torch.equal(theirs.encode_image(images), ours.module.encode_image(images))
        assert torch.equal(theirs.encode_text(tokens), ours.module.encode_text(tokens))

    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "open_clip.pt")
    entry = {"config": str(pairs.root / "clip.json"), "weights": str(tmp_path / "open_clip.pt")}
    config = Config(pairs.config.path, pairs.config.datasets, {"started": entry})
    still = dict(lr=0.0, weight_decay=0.0, steps=1, name="second")
    run(config, tmp_path, dataset="pairs", learner="started", **still)
    weights = load_file(tmp_path / "second" / "checkpoints" / "learner.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.state_dict().items())
