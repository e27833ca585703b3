"""The whole way on real digits, with the commands of the README."""

from __future__ import annotations

import contextlib
import json

import duckdb
import pytest
from support import commands

MODELS = """
[models.learner]
architecture = "small_resnet"
arguments = { channels = [16, 32, 64], layers = [1, 1] }
preprocessing = { size = 8 }

[models.scorer]
architecture = "small_resnet"
arguments = { channels = [8, 16], layers = [0] }
preprocessing = { size = 8 }
"""


def curate(folder, *arguments: str) -> str:
    with contextlib.chdir(folder):
        done = commands.curate(*arguments)
    assert done.code == 0, done.err
    return done.out.strip()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which every command of the README has run once."""
    folder = tmp_path_factory.mktemp("work")
    curate(folder, "prepare", "digits")
    with (folder / "curate.toml").open("a") as file:
        file.write(MODELS)
    reference = ("--dataset", "digits-curated", "--learner", "scorer", "--steps", "300", "--batch-size", "64")
    assert curate(folder, "train", *reference, "--lr", "1e-2", "--name", "reference") == "runs/reference"
    table = curate(folder, "score-reference", "--dataset", "digits", "--reference", "runs/reference")
    assert (folder / table / "00000.parquet").exists()
    common = ("train", "--dataset", "digits", "--learner", "learner", "--budget-flops", "50GF", "--batch-size", "32")
    curate(folder, *common, "--policy", "uniform", "--name", "uniform")
    selecting = (
        "--policy",
        "learnability",
        "--online",
        "scorer",
        "--reference-scores",
        "scores",
        "--name",
        "learnability",
    )
    curate(folder, *common, *selecting)
    return folder, table


def test_both_runs_learn_and_spend_the_same_budget(work):
    for name in ("uniform", "learnability"):
        summary = json.loads((work[0] / "runs" / name / "summary.json").read_text())
        assert summary["quality"]["top1"] > 0.6
        assert 0.95 * 50e9 < summary["regimes"]["foundation"] <= 50e9
        assert summary["regimes"]["nothing_amortised"] > summary["regimes"]["foundation"] or name == "uniform"


def test_the_run_folder_is_as_the_readme_draws_it(work):
    run = work[0] / "runs" / "learnability"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")}
    fixed = {"config.json", "manifest.json", "log.txt", "metrics.jsonl", "summary.json"}
    weights = {"checkpoints/learner.safetensors", "checkpoints/online.safetensors"}
    assert fixed | weights == {name for name in names if not name.startswith("selections/")}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    summary = json.loads((run / "summary.json").read_text())
    assert last["step"] == summary["steps"]
    assert last["flops"] == summary["ledger"]
    assert set(last["seconds"]) >= {"total", "data", "score", "select", "train", "record"}
    assert last["samples_per_second"] > 0 and last["mfu"] is None and 0 <= last["data_share"] <= 1


def test_selections_hold_every_super_batch(work):
    run = work[0] / "runs" / "learnability"
    steps, rows, chosen, wrong = duckdb.sql(
        f"SELECT count(DISTINCT step), count(*), count_if(selected), "
        f"count_if(abs(score - (online_loss - reference_loss)) > 1e-4) FROM '{run}/selections/*.parquet'"
    ).fetchall()[0]
    assert (rows, chosen, wrong) == (steps * 64, steps * 32, 0)
    assert steps == json.loads((run / "summary.json").read_text())["steps"]


def test_sql_answers(work):
    answer = curate(work[0], "sql", "SELECT run, top1 > 0.6 AS ok FROM runs ORDER BY run", "--format", "json")
    assert [(row["run"], row["ok"]) for row in json.loads(answer)] == [
        ("learnability", True),
        ("reference", True),
        ("uniform", True),
    ]
    assert json.loads(curate(work[0], "sql", "SELECT count(*) AS n FROM scores", "--format", "json")) == [{"n": 900}]


def test_plain_duckdb_and_arrow_open_the_table(work):
    import pyarrow.dataset

    pattern = f"{work[0]}/scores/*/*/*.parquet"
    query = f"SELECT dataset, count(*) FROM read_parquet('{pattern}', hive_partitioning = true) GROUP BY 1"
    assert duckdb.sql(query).fetchall() == [("digits", 900)]
    assert pyarrow.dataset.dataset(f"{work[0]}/scores", partitioning="hive").count_rows() == 900


def test_scoring_again_does_nothing(work):
    folder, table = work
    before = {p.name: p.stat().st_mtime_ns for p in (folder / table).glob("*.parquet")}
    assert curate(folder, "score-reference", "--dataset", "digits", "--reference", "runs/reference") == table
    assert {p.name: p.stat().st_mtime_ns for p in (folder / table).glob("*.parquet")} == before
