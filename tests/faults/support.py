"""What the fault tests share: many small shards, and commands to disturb."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from curate.datasets.spec import add_dataset, find_dataset, load_config
from curate.pipelines.score_reference import ScoreOptions, score_reference
from support.commands import silent
from support.prepared import Digits
from support.tars import read_tar, replace_member, reshard

SHARDS = 450
REAL_SECONDS = 600  # far more than a whole run needs; what takes longer hangs


@dataclass(frozen=True)
class Many:
    """SHARDS shards of two examples, some of them bad, and the table of an undisturbed run."""

    root: Path
    reference: str
    undisturbed: Path
    options: ScoreOptions

    @property
    def toml(self) -> Path:
        return self.root / "curate.toml"

    def command(self, out: object, *more: object, toml: Path | None = None) -> list[str]:
        """The real command's arguments, with as many worker processes as there are cores."""
        known = ("--config", toml or self.toml, "--dataset", "many", "--reference", self.reference)
        return [str(a) for a in ("score-reference", *known, "--precision", "fp32", "--out", out, *more)]

    def table(self, out: Path) -> Path:
        return out / self.undisturbed.parent.name / self.undisturbed.name


def make_many(digits: Digits, root: Path) -> Many:
    shards = reshard(sorted((digits.root / "data/digits/train").glob("*.tar")), root / "shards", SHARDS)
    for i, (ending, content) in enumerate((("png", b"no picture"), ("png", b""), ("cls", None), ("cls", b"horse"))):
        path = shards[i * (SHARDS // 4) + 5]
        replace_member(path, {f"{read_tar(path)[0][0].split('.')[0]}.{ending}": content})
    toml = root / "curate.toml"
    toml.write_text(digits.toml.read_text())
    add_dataset(toml, "many", {"train": f"shards/{{00000..{SHARDS - 1:05d}}}.tar", "image": "png", "classes": 10})
    options = digits.options(root / "undisturbed", dataset=find_dataset("many", load_config(toml)))
    summary = score_reference(options, silent)
    assert (summary.shards, summary.examples, summary.failures) == (SHARDS, 896, 4)
    return Many(root, digits.reference, Path(summary.folder), options)


def start(command: list[str], errors: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The real command line, its error output in a file."""
    with errors.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "curate", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


def finish(command: list[str], errors: Path, **environment: str) -> None:
    process = start(command, errors, **environment)
    assert process.wait(timeout=REAL_SECONDS) == 0, errors.read_text()


def the_one_line(errors: Path) -> str:
    """What a failed command said: one line that begins with its name, the last, and no traceback."""
    text = errors.read_text()
    assert "Traceback" not in text, text
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("curate: ")] == lines[-1:], text
    return lines[-1]


def wait_until(condition, process: subprocess.Popen[bytes], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before {what}"
        assert time.monotonic() < deadline, f"{seconds} s without {what}"
        time.sleep(0.02)


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a running command."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [p for p in children if "curate.pipelines.worker" in p.cmdline()]
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]
