"""Runs of a comparison that a launcher starts in several processes. The launchers here are shell scripts."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from curate.errors import RunError, WriteError
from curate.studies import launched
from curate.studies.launched import launch
from curate.training import RunOptions, train
from support.commands import silent
from support.rank_work import run_what_is_launched
from support.ranks import run_ranks


@pytest.fixture
def options(digits, tmp_path):
    return RunOptions.of(
        dataset="digits",
        learner="learner",
        online="scorer",
        policy="learnability",
        reference_scores=digits.scores,
        steps=3,
        batch_size=16,
        precision="fp32",
        evaluate=False,
        out=str(tmp_path / "runs"),
        name="run",
    )


def script(folder, text):
    """What starts it: it is called with `-m curate launched FILE`."""
    (folder / "launcher.sh").write_text(text)
    return f"sh {shlex.quote(str(folder / 'launcher.sh'))}"


def test_two_processes_make_the_run_that_one_makes(options, digits, tmp_path):
    run, kept = tmp_path / "runs/run", tmp_path / "kept"
    launcher = script(tmp_path, f'cp "$4" {kept}; mkdir -p {run}; echo "{{\\"steps\\": 3}}" > {run}/summary.json\n')
    assert launch(options, digits.config, launcher) == {"steps": 3}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    (run / "summary.json").unlink()
    run.rmdir()

    found = run_ranks(2, run_what_is_launched, kept)
    assert found == [None, None]
    summary = launch(options, digits.config, "true")
    alone = train(options.but(name="alone"), config=digits.config, report=silent)
    assert summary["ledger"] == alone["ledger"] and summary["steps"] == 3


def test_what_the_processes_told_is_the_error(options, digits, tmp_path):
    failing = "echo '[rank1] Traceback' >&2; echo 'curate: the disk is full' >&2; echo 'torchrun: failed' >&2; exit 3\n"
    with pytest.raises(RunError, match=r"runs/run: what --launcher started ended with code 3: the disk is full$"):
        launch(options, digits.config, script(tmp_path, failing))
    with pytest.raises(RunError, match="ended with code 1: without a word"):
        launch(options, digits.config, "false")
    with pytest.raises(RunError, match="--launcher: 'no-such-launcher' does not start: No such file"):
        launch(options, digits.config, "no-such-launcher -n 2")
    assert not list((tmp_path / "runs").iterdir())


def test_a_folder_that_cannot_be_written_or_is_on_another_machine_is_one_line(options, digits, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/\.run\.launch: cannot be written"):
        launch(options.but(out=str(tmp_path / "file")), digits.config, "true")
    with pytest.raises(
        RunError, match=r"\.run\.launch: cannot be read \(No such file or directory\); every node needs"
    ):
        launched.run_launched(tmp_path / ".run.launch")


def test_a_signal_is_the_launcher_s(options, digits, tmp_path):
    waiting = "trap 'echo curate: stopped >&2; exit 143' TERM; touch {}; while :; do sleep 0.05; done\n"
    started = tmp_path / "started"

    def stop():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunError, match="code 143: stopped"):
        launch(options, digits.config, script(tmp_path, waiting.format(started)))
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_run_outlives_who_started_it(monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    launched._end_with(gone.pid)
    assert codes == [1]
