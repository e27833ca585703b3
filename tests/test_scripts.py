"""The scripts beside the package start from the repository's root, as their docstrings say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("script", ["findings", "pairs", "chart"])
def test_experiments_start(script):
    done = subprocess.run(
        [sys.executable, f"experiments/{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"python experiments/{script}.py" in done.stdout


def test_benchmarks_start():
    code = (
        "import importlib, run; print([importlib.import_module(n).BENCHMARK.name for n in run.NAMES + run.MORE_NAMES])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "score_throughput" in done.stdout
