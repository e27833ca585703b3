"""The scripts beside the package start from the repository's root, as their docstrings say."""

import importlib
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("script", ["findings", "pairs", "chart", "knobs_figure", "crossing_figure"])
def test_experiments_start(script):
    done = subprocess.run(
        [sys.executable, f"experiments/{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"python experiments/{script}.py" in done.stdout


def test_the_map_in_the_findings_is_that_of_its_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import curated_map

    results = curated_map.read_results(ROOT / "experiments" / "results" / "2026-11-26-map.jsonl")
    assert len(results) > 10
    assert {line["name"] for line in results} <= {cell.name for cell in curated_map.planned()}
    page = (ROOT / "docs" / "findings-tables.md").read_text(encoding="utf-8")
    assert curated_map.tables(results) in page, "python experiments/curated_map.py --table RESULTS.jsonl"


def test_the_sources_in_the_findings_are_those_of_their_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import sources

    results = sources.read_results(ROOT / "experiments" / "results" / "2026-11-26-sources.jsonl")
    assert {(line["arm"], line["seed"]) for line in results} <= set(sources.planned())
    page = (ROOT / "docs" / "findings-tables.md").read_text(encoding="utf-8")
    assert sources.tables(results) in page, "python experiments/sources.py --table RESULTS.jsonl"


SCRIPTS = """
crossing scale beside_infobatch beside_rho_loss beside_drrho_clip half_curated cheap_scorers data_rater knobs score_age
moving_reference
""".split()


@pytest.mark.parametrize("script", SCRIPTS)
def test_tables_in_the_findings_are_those_of_their_results(monkeypatch, script):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = importlib.import_module(script)
    results = importlib.import_module("curated_map").read_results(
        ROOT / "experiments" / "results" / f"2026-11-26-{script.replace('_', '-')}.jsonl"
    )
    assert {module.key_of(line) for line in results} <= set(module.planned())
    page = (ROOT / "docs" / "findings-tables.md").read_text(encoding="utf-8")
    assert module.tables(results) in page, f"python experiments/{script}.py --table RESULTS.jsonl"


def test_differences_over_seeds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from seeds import bootstrap, cell, difference

    assert cell([0.5, 0.52, 0.54]) == "52.0 ± 3.4 (n = 3)"  # 2.92 x 2 / sqrt(3)
    assert (
        difference({0: 0.52, 1: 0.55, 2: 0.58, 7: 0.9}, {0: 0.5, 1: 0.5, 2: 0.5}) == "+5.0 (-0.1..+10.1 / +3.0..+7.0)"
    )
    assert difference({0: 0.5}, {1: 0.5}) == ""
    rng = random.Random(0)
    values = [1.0, 2.0, 4.0, 8.0]
    drawn = sorted(statistics.fmean(rng.choices(values, k=4)) for _ in range(20_000))
    low, high = bootstrap(values)
    assert (low, high) == (pytest.approx(drawn[1_000], abs=0.26), pytest.approx(drawn[19_000], abs=0.26))


def test_the_wrong_labels_beside_cleanlab_are_those_of_their_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import wrong_labels

    results = wrong_labels.read_results(ROOT / "experiments" / "results" / "2026-11-26-wrong-labels.jsonl")
    page = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
    demo = [line for line in results if line["dataset"] == "cifar10n"]
    assert wrong_labels.table(demo) in page, "python experiments/wrong_labels.py --table RESULTS.jsonl"


def test_early_steps_count_for_more_of_the_running_statistics(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import batch_norm

    norm = torch.nn.BatchNorm1d(3).train()
    batches = torch.randn(20, 16, 3, generator=torch.Generator().manual_seed(0)) * 5 + 3
    mean, variance = torch.zeros(3), torch.ones(3)
    for step, batch in enumerate(batches):
        with batch_norm.early_statistics(norm, step):
            norm(batch)
        share = max(2 / (step + 2), norm.momentum)
        mean = (1 - share) * mean + share * batch.mean(0)
        variance = (1 - share) * variance + share * batch.var(0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)


def test_benchmarks_start():
    code = (
        "import importlib, run; print([importlib.import_module(n).BENCHMARK.name for n in run.NAMES + run.MORE_NAMES])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "score_throughput" in done.stdout
