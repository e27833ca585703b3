"""Disks that fill up, and storage that fails now and then, is slow, or lists late."""

import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from curate.datasets.spec import add_dataset
from curate.scoring.tables.lookup import open_scores
from faults.support import REAL_SECONDS, SHARDS, finish, start, the_one_line
from support.folders import tree
from support.tables import assert_same_table

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
SITE = Path(__file__).parent / "site"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_in_the_middle(many, small_disk, tmp_path):
    disk, enlarge = small_disk
    folder, errors, command = many.table(disk), tmp_path / "errors", many.command(disk)
    committed = {}
    for attempt in ("filling up", "still full"):
        process = start(command, errors)
        assert process.wait(timeout=REAL_SECONDS) == 1, (attempt, errors.read_text())
        line = the_one_line(errors)
        assert "cannot be written (No space left on device); free space" in line, (attempt, line)
        left = tree(disk)
        assert not [name for name in left if "partial" in name], attempt
        assert {name: left[name] for name in committed} == committed, attempt
        committed = {name: content for name, content in left.items() if name.endswith(".parquet")}
        examples, _ = open_scores(str(folder)).check()
        assert 50 < examples < 896, attempt
    enlarge()
    finish(command, errors)
    assert_same_table(folder, many.undisturbed)
    after = tree(disk)
    assert {name: after[name] for name in committed} == committed


def test_a_file_larger_than_the_system_allows(digits, tmp_path):
    """The other way in which a write fails halfway: after its first 4 kB."""
    errors = tmp_path / "errors"
    command = ["score-reference", "--config", digits.toml, "--dataset", "digits", "--reference", digits.reference]
    command = [str(a) for a in (*command, "--precision", "fp32", "--out", tmp_path / "scores")]
    limits = (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    with errors.open("wb") as file:
        process = subprocess.run(
            [sys.executable, "-B", "-m", "curate", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=file,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
            timeout=REAL_SECONDS,
        )
    assert process.returncode == 1, errors.read_text()
    assert "cannot be written (File too large)" in the_one_line(errors)
    assert [name for name in tree(tmp_path / "scores") if not name.endswith("_manifest.json")] == []
    finish(command, errors)
    assert_same_table(tmp_path / "scores/dataset=digits" / digits.table.name, digits.table)


FAULTS = {
    "every 40th read": ("read=40", {"read"}),
    "every 15th write": ("write=15", {"write"}),
    "every 7th read and every 3rd write": ("read=7,write=3", {"read", "write"}),
    "slow, listing late, and every 50th read": ("read=50,slow=0.003,late=4", {"read"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_storage_that_is_not_to_be_trusted(many, tmp_path, name):
    """The real command with its worker processes, data and table both on a file system that misbehaves."""
    settings, wanted = FAULTS[name]
    toml = tmp_path / "curate.toml"
    toml.write_text(many.toml.read_text())
    entry = {"train": f"faulty://{many.root}/shards/{{00000..{SHARDS - 1:05d}}}.tar", "image": "png", "classes": 10}
    add_dataset(toml, "many", entry)
    errors, log = tmp_path / "errors", tmp_path / "log"
    path = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path, "FAULTY": settings, "FAULTY_LOG": str(log)}
    command, said = many.command(f"faulty://{tmp_path}/scores", toml=toml), []
    started, done = time.monotonic(), 0
    for _attempt in range(12):
        process = start(command, errors, **environment)
        code = process.wait(timeout=REAL_SECONDS)
        now = len(list((tmp_path / "scores").glob("*/*/*.parquet")))
        assert now >= done, "what was committed is gone"
        done = now
        if code == 0:
            break
        assert code == 1, errors.read_text()
        said.append(the_one_line(errors))
    assert code == 0, said
    assert_same_table(many.table(tmp_path / "scores"), many.undisturbed, f"{name}: {said}")
    failed = Counter(log.read_text().split()) if log.exists() else Counter()
    assert set(failed) == wanted, "the faults that the test is about did not happen"
    print(f"{name}: {dict(failed)} failed, {1 + len(said)} runs, {time.monotonic() - started:.0f} s; {said[:1]}")
