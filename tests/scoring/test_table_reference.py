"""The model behind a table: the user's own, never one that only the table describes, unless it is trusted."""

import json
import shutil
from dataclasses import replace

import open_clip
import pytest
import timm
from curate.datasets import list_shards
from curate.datasets.spec import Config
from curate.datasets.storage import filesystem
from curate.errors import ModelError, TableError
from curate.pipelines.score_reference import score_reference
from curate.scoring.loading import find_model, load_model
from curate.scoring.tables.lookup import ScoreTable, open_scores
from curate.scoring.tables.reference import reference_of_table
from curate.scoring.tables.write import note_error
from curate.training import RunOptions, train
from support.commands import silent

STRANGERS = {
    "a URL": {"weights": "https://elsewhere.example/w.safetensors"},
    "a hub's name": {"architecture": "hf-hub:stranger/model", "weights": "published"},
    "a tokenizer's arguments": {
        "open_clip_config": {
            "embed_dim": 8,
            "vision_cfg": {},
            "text_cfg": {"hf_tokenizer_name": "stranger/tokenizer", "tokenizer_kwargs": {"trust_remote_code": True}},
        },
        "weights": "published",
    },
}


def told(table, **model):
    """The table with another description of its model."""
    manifest = json.loads(json.dumps(table.manifest))
    manifest["reference"]["model"] |= model
    return ScoreTable(table.folder, manifest)


@pytest.fixture(scope="module")
def pair_table(pairs, tmp_path_factory):
    return open_scores(score_reference(pairs.options(tmp_path_factory.mktemp("scores")), silent).folder)


@pytest.mark.parametrize("what", STRANGERS)
def test_what_only_the_table_describes_is_not_built(what, pairs, pair_table):
    dataset, table = pairs.options("unused").dataset, told(pair_table, **STRANGERS[what])
    with pytest.raises(
        ModelError, match=r"'clip', which made it, is no model of yours.*--reference NAME.*--trust-table"
    ):
        reference_of_table(table, dataset, pairs.config)
    assert (
        reference_of_table(table, dataset, pairs.config, trust=True).to_dict() == table.manifest["reference"]["model"]
    )
    assert reference_of_table(table, dataset, pairs.config, name="clip").weights == str(pairs.root / "clip.safetensors")


def test_an_own_entry_and_an_own_run_are_found(digits, pairs, pair_table):
    own = reference_of_table(pair_table, pairs.options("unused").dataset, pairs.config)
    assert own == find_model("clip", task="image-text", config=pairs.config)
    elsewhere = Config(pairs.root / "other" / "curate.toml", {}, pairs.config.models)
    with pytest.raises(ModelError, match="no model of yours"):
        reference_of_table(pair_table, pairs.options("unused").dataset, elsewhere)
    table = open_scores(str(digits.table))
    run = reference_of_table(table, digits.dataset(), Config(None, {}, {}))
    assert load_model(run, trained=True).fingerprint() == table.reference_fingerprint


def test_a_manifest_that_describes_no_model(digits):
    table = told(open_scores(str(digits.table)), coarse={"sise": 3})
    with pytest.raises(TableError, match="describes no model"):
        reference_of_table(table, digits.dataset(), digits.config)


def test_a_run_on_a_strangers_table_builds_nothing_of_it(digits, tmp_path, monkeypatch):
    shutil.copytree(digits.scores, tmp_path / "scores")
    (file,) = (tmp_path / "scores").glob("*/*/_manifest.json")
    manifest = json.loads(file.read_text())
    manifest["reference"]["model"] |= STRANGERS["a hub's name"]
    file.write_text(json.dumps(manifest))
    made = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **given: (made.append(name), create(name, **given))[1])
    options = dict(dataset="digits", learner="learner", online="scorer", policy="learnability", steps=1, batch_size=16)
    options |= dict(reference_scores=str(tmp_path / "scores"), evaluate=False, precision="fp32", out=str(tmp_path))
    lines = []
    train(RunOptions.of(**options, name="a"), config=digits.config, report=lines.append)
    assert set(made) == {"small_resnet"}
    assert any("joined without scoring a few of them again" in line and "--trust-table" in line for line in lines)
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create("small_resnet", channels=[4, 8], layers=[0]))
    with pytest.raises(TableError, match="was scored by reference"):
        train(RunOptions.of(**options, name="b", trust_table=True), config=digits.config, report=silent)
    with pytest.raises(ModelError, match="--trust-table"):
        train(RunOptions.of(**options, name="c", on_missing="score"), config=digits.config, report=silent)


def test_secrets_in_urls_reach_no_file_and_no_line_of_a_table(pairs, tmp_path):
    url = "memory://weights/clip.safetensors?signature=SECRET"
    fs, path = filesystem(url)
    fs.pipe_file(path, (pairs.root / "clip.safetensors").read_bytes())
    models = {"signed": {**pairs.config.models["clip"], "weights": url}}
    reference = find_model("signed", task="image-text", config=Config(pairs.config.path, {}, models))
    lines = []
    folder = score_reference(pairs.options(tmp_path, reference=reference), lines.append).folder
    (shard, *_) = list_shards(pairs.options("unused").dataset)
    note_error(
        folder, replace(shard, url="https://me:SECRET@host/a.tar?key=SECRET"), "s3://a:SECRET@b/c.tar: cannot be read"
    )
    found = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert not [path for path, content in found.items() if b"SECRET" in content]
    assert not [line for line in lines if "SECRET" in line]
    manifest = open_scores(folder).manifest
    assert manifest["reference"]["model"]["weights"] == "memory://weights/clip.safetensors"
    assert (
        reference_of_table(open_scores(folder), pairs.options("unused").dataset, Config(pairs.config.path, {}, models))
        == reference
    )


def test_open_clip_is_not_asked_for_a_strangers_tokenizer(pairs, pair_table, tmp_path, monkeypatch):
    shutil.copytree(pair_table.folder, tmp_path / "scores")
    file = tmp_path / "scores/_manifest.json"
    manifest = json.loads(file.read_text())
    manifest["reference"]["model"] |= STRANGERS["a tokenizer's arguments"]
    file.write_text(json.dumps(manifest))
    asked = []
    get = open_clip.get_tokenizer
    monkeypatch.setattr(
        open_clip, "get_tokenizer", lambda name: (asked.append(open_clip.get_model_config(name)), get(name))[1]
    )
    options = dict(dataset="pairs", learner="untrained-clip", online="untrained-clip", policy="learnability", steps=1)
    options |= dict(batch_size=16, reference_scores=str(tmp_path / "scores"), evaluate=False, precision="fp32")
    train(RunOptions.of(**options, out=str(tmp_path), name="run"), config=pairs.config, report=silent)
    assert asked and not [config for config in asked if "hf_tokenizer_name" in config["text_cfg"]]
