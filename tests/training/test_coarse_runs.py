"""Runs that score more coarsely than they train, both sides alike; and data given as open_clip's users give it."""

import json

import duckdb
import numpy as np
import pytest
from curate.datasets.spec import Config, find_dataset
from curate.errors import TableError
from curate.pipelines.score_reference import score_reference
from curate.scoring import find_model, open_scores
from curate.training import RunOptions, train
from curate.training.evaluate import evaluate_by_name
from support.commands import curate, silent


def score(pairs, out, *options):
    toml = pairs.root / "curate.toml"
    return curate(
        *("score-reference", "--dataset", "pairs", "--reference", "clip", "--config", toml, "--out", out),
        *("--precision", "fp32", *options, "--", "--direct_running_mode=in_memory", "--direct_num_workers=1"),
    )


def options(out, table, **changes):
    known = dict(
        dataset="pairs",
        learner="untrained-clip",
        policy="learnability",
        online="clip",
        reference_scores=table,
        steps=2,
        batch_size=5,
        filter_ratio=0.75,
        precision="fp32",
        out=str(out),
        name="run",
        evaluate=False,
    )
    return RunOptions.of(**{**known, **changes})


def first_losses(out):
    found = duckdb.sql(f"SELECT online_loss, reference_loss FROM '{out}/run/selections/*.parquet' WHERE step = 1")
    return found.fetchnumpy()


@pytest.mark.parametrize(
    ("how", "coarse"), [("--score-size", {"size": 16}), ("--score-patch-dropout", {"patch_dropout": 0.5})]
)
def test_both_sides_are_made_alike_and_the_manifest_says_how(how, coarse, pairs, tmp_path):
    """The online model starts as the reference: nothing is learnable where both saw the same."""
    scored = score(pairs, tmp_path / "scores", how, next(iter(coarse.values())))
    assert scored.code == 0, scored.err
    table = scored.out.strip()
    full = score_reference(pairs.options(tmp_path / "scores"), silent).folder
    assert table != full
    manifest = open_scores(table).manifest
    assert manifest["reference"]["model"]["coarse"] == coarse
    assert manifest["reference"]["preprocessing"]["size"] == coarse.get("size", 32)
    assert manifest["flops"]["forward_per_example"] < open_scores(full).manifest["flops"]["forward_per_example"]

    summary = train(options(tmp_path, table), config=pairs.config, report=silent)
    losses = first_losses(tmp_path)
    np.testing.assert_allclose(losses["online_loss"], losses["reference_loss"], atol=1e-6)
    per_example = manifest["flops"]["forward_per_example"]  # of the same architecture, at the same resolution
    assert summary["ledger"]["online_score"] == pytest.approx(2 * 20 * per_example)

    whole = train(options(tmp_path / "full", full), config=pairs.config, report=silent)
    assert whole["ledger"]["online_train"] == summary["ledger"]["online_train"]
    assert not np.allclose(first_losses(tmp_path / "full")["reference_loss"], losses["reference_loss"])


def test_jest_and_missing_scores_work_at_the_resolution_of_the_table(pairs, tmp_path):
    table = score(pairs, tmp_path / "scores", "--score-size", 16, "--embeddings").out.strip()
    shard = next(iter(open_scores(table).shard_names()))
    (tmp_path / "scores" / "dataset=pairs" / table.split("/")[-1] / f"{shard}.parquet").unlink()
    common = dict(policy="jest", on_missing="score", chunks=2)
    summary = train(options(tmp_path, table, **common), config=pairs.config, report=silent)
    assert summary["counts"]["scored_in_run"] == 20
    losses = first_losses(tmp_path)
    np.testing.assert_allclose(losses["online_loss"], losses["reference_loss"], atol=5e-3)  # stored in float16


def test_sides_that_differ_are_refused_with_both_values(pairs, tmp_path):
    full = score_reference(pairs.options(tmp_path / "scores"), silent).folder
    with pytest.raises(TableError, match="scored with the model's own resolution, this run is to score with 16 px"):
        train(options(tmp_path, full, score_size=16), config=pairs.config, report=silent)
    assert not (tmp_path / "run").exists()


def test_a_policy_without_a_reference_scores_as_coarsely_as_asked(pairs, tmp_path):
    spent = [
        train(
            options(tmp_path / str(size), None, policy="hard-learner", score_size=size),
            config=pairs.config,
            report=silent,
        )["ledger"]
        for size in (None, 16)
    ]
    assert spent[1]["online_score"] < spent[0]["online_score"]
    assert spent[1]["online_train"] == spent[0]["online_train"]


def test_data_as_open_clips_users_give_it(pairs, tmp_path):
    called = curate(
        *("train", "--train-data", f"{pairs.root}/data/{{00000..00002}}.tar", "--train-num-samples", 40),
        *("--epochs", 2, "--learner", "untrained-clip", "--config", pairs.root / "curate.toml"),
        *("--batch-size", 8, "--out", tmp_path, "--name", "run", "--precision", "fp32"),
    )
    assert called.code == 0, called.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["examples_trained"], summary["dataset"]) == (80, "data")


def test_any_model_on_any_test_split(pairs, digits, tmp_path):
    datasets = {"with-test": {**pairs.config.datasets["pairs"], "test": pairs.config.datasets["pairs"]["train"]}}
    labelled = {**datasets["with-test"], "label": "cls", "classes": ["a", "b"]}
    config = Config(pairs.config.path, {**datasets, "labelled": labelled}, pairs.config.models)
    quality = evaluate_by_name("clip", "with-test", config, "fp32")
    assert quality["test_examples"] == 60
    recalls = [quality[f"{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert quality["mean_recall"] == pytest.approx(sum(recalls) / 6)
    # A run on pairs has no classes of its own: naming some for zero-shot does not make it another model.
    train(options(tmp_path, None, policy="uniform", online=None), config=pairs.config, report=silent)
    spec = find_dataset("labelled", config)
    assert (
        find_model(str(tmp_path / "run"), task=spec.task, num_classes=spec.num_classes, config=config).num_classes == 0
    )
    called = curate("evaluate", digits.reference, "--dataset", "digits", "--config", digits.toml)
    assert json.loads(called.out)["test_examples"] == 597
