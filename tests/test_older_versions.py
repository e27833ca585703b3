"""What 0.1.0 wrote still opens: tables, runs, config files. Made by that version's own code; see fixtures/v0.1/NOTE."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from curate.datasets.preparers import prepare
from curate.datasets.spec import find_dataset, load_config
from curate.errors import RunError, TableError
from curate.pipelines.options import ScoreOptions
from curate.pipelines.score_reference import score_reference
from curate.reports import connect, query
from curate.scoring import find_model, load_model, open_scores, select
from curate.scoring.tables.counts import all_counts
from curate.scoring.tables.images import ImageReader
from curate.training import RunOptions, train
from support.commands import silent

FIXTURE = Path(__file__).parent / "fixtures" / "v0.1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
TABLES = sorted(EXPECTED["tables"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the working folder of then, with the digits of today."""
    root = tmp_path_factory.mktemp("older") / "work"
    shutil.copytree(FIXTURE, root)
    prepare("digits", root / "data", root / "curate.toml", report=silent)
    return root


@pytest.mark.parametrize("name", TABLES)
def test_a_table_holds_what_it_held(name):
    table, expected = open_scores(str(FIXTURE / name)), EXPECTED["tables"][name]
    assert table.check() == (expected["rows"], 0)
    rows = sorted((r["shard"], r["key"], r["loss"]) for r in table.read(["shard", "key", "loss"]).to_pylist())
    digest = hashlib.sha256()
    for shard, key, loss in rows:
        digest.update(shard.encode() + key.encode() + np.float32(loss).tobytes())
    assert digest.hexdigest() == expected["sha256_of_shard_key_loss"]
    assert table.read().schema.names == expected["columns"]
    assert {shard: c.examples for shard, c in all_counts(table.folder).items()} == expected["rows_by_shard"]


def test_fingerprints_are_what_they_were(folder):
    config = load_config(folder / "curate.toml")
    for name, fingerprint in EXPECTED["dataset_fingerprints"].items():
        assert find_dataset(name, config).fingerprint == fingerprint
    for run in ("reference", "finished"):
        spec = find_model(str(folder / "runs" / run), task="classification", num_classes=10, config=config)
        assert load_model(spec).fingerprint() == EXPECTED["model_fingerprints"][f"runs/{run}"]


def test_the_same_reference_makes_the_same_table(folder, tmp_path):
    config = load_config(folder / "curate.toml")
    reference = find_model(str(folder / "runs/reference"), task="classification", num_classes=10, config=config)
    options = ScoreOptions(
        dataset=find_dataset("digits-small", config),
        reference=reference,
        out=str(tmp_path),
        precision="fp32",
        runner_options=("--direct_running_mode=in_memory", "--direct_num_workers=1"),
    )
    now = open_scores(score_reference(options, silent).folder)
    then = open_scores(str(FIXTURE / TABLES[0]))
    for old, new in zip(then.read().to_pylist(), now.read().to_pylist(), strict=True):
        assert old["loss"] == pytest.approx(new["loss"], abs=1e-5)
        new_columns = {"offset", "length"}
        assert {k: v for k, v in old.items() if k != "loss"} == {
            k: v for k, v in new.items() if k not in {"loss", *new_columns}
        }
        assert set(new) - set(old) == new_columns
    assert set(then.manifest) | {"source", "places"} == set(now.manifest)


def test_a_table_that_was_begun_without_places_is_finished_without_them(folder, tmp_path):
    config = load_config(folder / "curate.toml")
    reference = find_model(str(folder / "runs/reference"), task="classification", num_classes=10, config=config)
    scores = tmp_path / "scores"
    shutil.copytree(folder / TABLES[0], scores / Path(*Path(TABLES[0]).parts[-2:]))
    (table,) = scores.glob("*/*")
    names = open_scores(str(scores)).read().schema.names
    gone = sorted(table.glob("*.parquet"))[0]
    gone.unlink()
    options = ScoreOptions(
        dataset=find_dataset("digits-small", config),
        reference=reference,
        out=str(scores),
        runner_options=("--direct_running_mode=in_memory", "--direct_num_workers=1"),
    )
    assert score_reference(options, silent).scored_now == 1
    assert gone.exists() and open_scores(str(scores)).read().schema.names == names
    dataset = find_dataset("digits-small", config)
    with pytest.raises(TableError, match="does not say where images lie"):
        ImageReader(open_scores(str(scores)), dataset).read([gone.stem], ["anything"])


def test_the_same_scores_and_random_numbers_choose_the_same():
    files = sorted((FIXTURE / "runs/finished/selections").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 21):
        batch = [row for row in rows if row["step"] == step]
        score = torch.tensor([row["score"] for row in batch])
        learnability = torch.tensor([row["online_loss"] - row["reference_loss"] for row in batch])
        torch.testing.assert_close(score, learnability, atol=1e-6, rtol=0)
        chosen = select(score, 8, generator=generator)
        assert chosen.tolist() == [i for i, row in enumerate(batch) if row["selected"]]


def test_a_finished_run_is_still_finished_and_a_row_of_the_views(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = json.loads((folder / "runs/finished/config.json").read_text())
    summary = train(RunOptions.from_dict(config), config=load_config(), resume=True, report=silent)
    expected = json.loads((FIXTURE / "runs/finished/summary.json").read_text())
    assert summary == expected
    found = query(
        connect(scores="scores", runs="runs", datasets={}), "SELECT run, policy, top1, seed FROM runs ORDER BY run"
    )
    rows = found.read_all().to_pylist()
    assert [row["run"] for row in rows] == ["finished", "killed", "reference"]
    assert rows[0]["top1"] == expected["quality"]["top1"] and rows[0]["policy"] == expected["policy"]


def test_a_run_that_is_half_done_is_refused_with_the_reason(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = json.loads((folder / "runs/killed/config.json").read_text())
    before = {
        p: p.read_bytes() for p in sorted((folder / "runs/killed").rglob("*")) if p.is_file() and p.name != "log.txt"
    }
    with pytest.raises(RunError, match=r"begun by curate 0\.1, which drew examples in another order"):
        train(RunOptions.from_dict(config), config=load_config(), resume=True, report=silent)
    for path, content in before.items():
        assert path.read_bytes() == content, path
