"""A run of a comparison in processes of its own, which a launcher such as torchrun starts."""

from __future__ import annotations

import os
import pickle
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..datasets.config import Config
from ..datasets.writing import write_errors
from ..errors import RunError
from ..training.options import RunOptions
from ..training.records import read_document

# How the command line tells its errors.
TOLD = "curate: "


def launch(options: RunOptions, config: Config, launcher: str) -> dict[str, Any]:
    """`train` with `resume` in the processes that the launcher starts. Returns the run's summary.

    Raises RunError with what they told, where they fail.
    """
    assert options.records.name is not None
    run = Path(options.records.out, options.records.name)
    file = run.parent / f".{run.name}.launch"  # where all nodes see it
    with write_errors(file):
        run.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps((options, config, (socket.gethostname(), os.getpid()))))
    command = [*shlex.split(launcher), "-m", "curate", "launched", str(file)]
    try:
        try:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except OSError as e:
            raise RunError(f"--launcher: '{command[0]}' does not start: {e.strerror}") from None
        with _told_to_end(process):
            _, errors = process.communicate()
    finally:
        file.unlink(missing_ok=True)
    if process.returncode:
        lines = [line for line in errors.splitlines() if line.strip()]
        told = [line.removeprefix(TOLD) for line in lines if line.startswith(TOLD)]
        why = (told or lines[-1:] or ["without a word"])[0]
        raise RunError(f"{run}: what --launcher started ended with code {process.returncode}: {why}")
    return read_document(run / "summary.json")


def run_launched(file: Path) -> None:
    """What each of the processes does: its part of the run that `launch` has put into the file."""
    try:
        options, config, (host, parent) = pickle.loads(file.read_bytes())
    except OSError as e:
        raise RunError(
            f"{file}: cannot be read ({e.strerror}); every node needs the folder of --out under the same path"
        ) from None
    if host == socket.gethostname():
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    from ..training.group import Group
    from ..training.run import train

    group = Group.from_env()
    try:
        train(options, config=config, resume=True, report=lambda line: None, group=group)
    finally:
        group.close()


@contextmanager
def _told_to_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Within, a SIGTERM is the launcher's, so that the run is saved."""

    def forward(number: int, frame: Any) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with(parent: int) -> None:
    """As `comparison._end_with_parent`: who started the launcher may be killed, and must leave no run behind."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(parent, 0)
            time.sleep(1)
    os._exit(1)
