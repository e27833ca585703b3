import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from curate.datasets.spec import add_dataset, find_dataset, load_config
from curate.errors import TableError
from curate.pipelines import local_workers
from curate.pipelines.score_reference import score_reference
from curate.scoring.tables.lookup import open_scores
from support.commands import silent, start_curate
from support.tars import read_tar, replace_member, reshard

TWO_WORKERS = ("--direct_num_workers=2",)


@pytest.fixture
def shards(digits, tmp_path):
    """Many small shards, so that a worker has work left whenever another one fails."""
    paths = reshard(sorted((digits.root / "data/digits/train").glob("*.tar")), tmp_path / "shards", 300)
    (tmp_path / "curate.toml").write_text(digits.toml.read_text())
    entry = {"train": "shards/{00000..00299}.tar", "image": "png", "classes": 10}
    add_dataset(tmp_path / "curate.toml", "small", entry)
    return paths


def worker_processes(process):
    return [p for p in psutil.Process(process.pid).children(True) if is_worker(p)]


def is_worker(process):
    try:
        return "curate.pipelines.worker" in process.cmdline()
    except psutil.Error:  # one that ended just now
        return False


@pytest.mark.parametrize("when", ["starting up", "scoring"])
def test_a_worker_that_is_killed_ends_the_job_with_one_line(digits, shards, tmp_path, when):
    process = start_curate(
        *("score-reference", "--config", tmp_path / "curate.toml", "--dataset", "small"),
        *("--reference", digits.reference, "--out", tmp_path / "scores", "--precision", "fp32", "--", *TWO_WORKERS),
        stderr=subprocess.PIPE,
    )
    try:
        while len(found := worker_processes(process)) < 2 or (when == "scoring" and not committed(tmp_path)):
            time.sleep(0.01)
        found[1].kill()
        _, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert f"curate: worker process {found[1].pid} was killed by signal 9" in errors.splitlines()[-1]
    assert not psutil.wait_procs(found, timeout=60)[1]
    assert len(committed(tmp_path)) < 300
    if when == "scoring":
        open_scores(str(tmp_path / "scores")).check()


def committed(folder: Path):
    return list(folder.glob("scores/*/*/*.parquet"))


def test_the_workers_of_a_killed_driver_end_with_it(digits, shards, tmp_path):
    process = start_curate(
        *("score-reference", "--config", tmp_path / "curate.toml", "--dataset", "small"),
        *("--reference", digits.reference, "--out", tmp_path / "scores", "--precision", "fp32", "--", *TWO_WORKERS),
    )
    while not committed(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    found = worker_processes(process)
    process.kill()
    process.wait()
    assert len(found) == 2
    assert not psutil.wait_procs(found, timeout=60)[1]


def test_one_workers_error_does_not_wait_for_the_others_share(digits, shards, tmp_path, capfd):
    options = digits.options(
        tmp_path / "scores",
        dataset=find_dataset("small", load_config(tmp_path / "curate.toml")),
        runner_options=TWO_WORKERS,
    )
    folder = tmp_path / "scores" / digits.table.parent.name.replace("digits", "small") / digits.table.name
    folder.mkdir(parents=True)
    (folder / "_failures").write_text("stands where a folder must be")
    replace_member(shards[0], {read_tar(shards[0])[0][0]: b"no picture"})
    with pytest.raises(TableError, match="cannot be written"):
        score_reference(options, silent)
    assert "Traceback" not in capfd.readouterr().err
    assert len(committed(tmp_path)) < 270, "each of the two has 150 shards; the one without an error had just begun"
    (folder / "_failures").unlink()
    summary = score_reference(options, silent)
    assert (summary.examples, summary.failures) == (899, 1)
    assert json.loads((folder / "_manifest.json").read_text())["counts"]["shards"] == 300


def test_workers_of_a_job_have_numbers_that_follow_each_other(digits, tmp_path, monkeypatch):
    """They pick their GPUs by them."""
    started = []
    real = subprocess.Popen

    def noting(command, **options):
        started.append(options["env"][local_workers.WORKER_NUMBER])
        return real(command, **options)

    monkeypatch.setattr(local_workers.subprocess, "Popen", noting)
    score_reference(digits.options(tmp_path / "scores", runner_options=TWO_WORKERS), silent)
    first, second = map(int, started)
    assert second == first + 1
