"""What the fault tests share: many small shards, commands to disturb, and the comparison that each of them ends in."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from conftest import Digits, read_tar, replace_member, reshard, silent
from curate.datasets.spec import add_dataset, find_dataset, load_config
from curate.pipelines.score_reference import ScoreOptions, score_reference
from curate.scoring.tables.lookup import open_scores

TOLERANCE = 1e-6
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


def failures(folder: str | Path) -> list[dict[str, object]]:
    files = sorted(Path(folder, "_failures").glob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def assert_same_rows(folder: str | Path, undisturbed: str | Path, told: str = "") -> None:
    ours, theirs = (open_scores(str(f)).read().to_pylist() for f in (folder, undisturbed))
    plain = [[{k: v for k, v in row.items() if k != "loss"} for row in rows] for rows in (ours, theirs)]
    assert plain[0] == plain[1], told
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], abs=TOLERANCE), told


def assert_same_table(folder: str | Path, undisturbed: str | Path, told: str = "") -> None:
    """Row for row: the same examples with the same losses, the same failures, and nothing else in the folder."""
    assert_same_rows(folder, undisturbed, told)
    assert failures(folder) == failures(undisturbed), told
    counts = [open_scores(str(f)).manifest["counts"] for f in (folder, undisturbed)]
    assert counts[0] == counts[1], told
    assert names_apart_from_scores(folder) == names_apart_from_scores(undisturbed), told


def names_apart_from_scores(folder: str | Path) -> list[str]:
    """An empty `_errors` is no difference (a shard was noted there, and read later), nor are a lock and counts that were kept."""
    found = {p.name for p in Path(folder).iterdir() if p.suffix != ".parquet"}
    return sorted(found - {".lock", "_counts"} - ({"_errors"} if not list(Path(folder).glob("_errors/*")) else set()))


def score_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("*.parquet")}


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
