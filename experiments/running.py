"""Commands of curate, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def curate(*arguments: object, cwd: Path) -> None:
    """The command line. Its output is shown only where it fails."""
    done = subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"curate {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "curate", *map(str, arguments)]
