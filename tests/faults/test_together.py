"""Two jobs on one table, and clocks that jump."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults.support import REAL_SECONDS, SHARDS, finish, start, the_one_line
from faults.test_storage import SITE
from support.folders import tree
from support.prepared import IN_MEMORY
from support.tables import assert_same_table

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
CLOCK = Path(__file__).parent / "clock.c"


def test_two_identical_jobs_at_once(many, tmp_path):
    """On a local folder one of them holds the table and the other says so; in the end there is one table."""
    command, errors = many.command(tmp_path / "scores"), [tmp_path / "errors-0", tmp_path / "errors-1"]
    processes = [start(command, file) for file in errors]
    codes = [process.wait(timeout=REAL_SECONDS) for process in processes]
    assert sorted(codes) == [0, 1], [file.read_text() for file in errors]
    assert "is writing this table; wait for it or stop it" in the_one_line(errors[codes.index(1)])
    assert_same_table(many.table(tmp_path / "scores"), many.undisturbed)
    finish(command, errors[0])
    assert "0 to do" in errors[0].read_text()


def test_two_identical_jobs_at_once_where_nothing_is_locked(many, tmp_path, monkeypatch):
    """On object stores both do the work, and neither spoils the other's."""
    monkeypatch.setenv("FAULTY", "slow=0.0005")
    monkeypatch.setenv("PYTHONPATH", str(SITE), prepend=":")
    command = many.command(f"faulty://{tmp_path}/scores")
    errors = [tmp_path / "errors-0", tmp_path / "errors-1"]
    processes = [start(command, file) for file in errors]
    codes = [process.wait(timeout=REAL_SECONDS) for process in processes]
    assert codes == [0, 0], [file.read_text() for file in errors]
    assert [f" 0 shards done, {SHARDS} to do" in file.read_text() for file in errors] == [True, True]
    assert_same_table(many.table(tmp_path / "scores"), many.undisturbed)


def test_a_clock_that_jumps_by_days_both_ways(many, tmp_path):
    """Under every call for the time, Python's and the libraries', lies a clock that jumps.

    All in one process: gRPC, over which Beam speaks to worker processes, waits for days itself under such a clock.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the library that makes clocks jump")
    library = tmp_path / "clock.so"
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, CLOCK, "-ldl"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    probe = "import time; found = [time.time() for _ in range(1000)]; print(max(found) - min(found))"
    jumps = subprocess.run(
        [sys.executable, "-c", probe], env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True
    )
    assert float(jumps.stdout) > 5 * 86_400, "the clock does not jump"
    errors, command = tmp_path / "errors", many.command(tmp_path / "scores", "--", *IN_MEMORY)
    finish(command, errors, LD_PRELOAD=str(library))
    assert_same_table(many.table(tmp_path / "scores"), many.undisturbed)
    (many.table(tmp_path / "scores") / "00000.parquet").unlink()
    finish(command, errors, LD_PRELOAD=str(library))
    assert f"{SHARDS - 1} shards done, 1 to do" in errors.read_text()
    assert_same_table(many.table(tmp_path / "scores"), many.undisturbed)
    assert not [name for name in tree(tmp_path / "scores") if "partial" in name]
