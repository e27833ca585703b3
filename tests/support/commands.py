"""The command line: in this process, or as the real one."""

import contextlib
import io
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

from curate.cli import app


def silent(line: str) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True)
class CommandResult:
    """What a call of the command line left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("curate: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("curate: ")


def curate(*arguments: object) -> CommandResult:
    """The command line in this process: same code, without seconds of imports. A bug's traceback is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    sys.argv = ["curate", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        sys.argv = before
    return CommandResult(code, out.getvalue(), err.getvalue())


def start_curate(*arguments: object, **settings: object) -> subprocess.Popen[str]:
    """The real command line as a process group of its own, its output going nowhere unless asked for."""
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **settings}
    return subprocess.Popen(
        [sys.executable, "-m", "curate", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
        **settings,
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
