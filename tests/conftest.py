"""Real, small data for all tests: scikit-learn's digits as classes and as captioned pictures, a reference, its scores."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from curate.cli import app
from curate.datasets.preparers import prepare
from curate.datasets.preparers.writer import encode_png
from curate.datasets.spec import Config, DatasetSpec, add_dataset, add_model, find_dataset, load_config
from curate.pipelines.score_reference import ScoreOptions, score_reference
from curate.scoring.loading import find_model
from curate.training import RunOptions, train

# Tiny tensors gain nothing from more threads, and lose much where other jobs share the cores.
torch.set_num_threads(1)

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IN_MEMORY = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def silent(line: str) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True)
class Digits:
    """A prepared folder: `curate.toml`, shards, models `scorer` and `learner`, the reference `run`, its `table`."""

    root: Path
    config: Config
    reference: str
    scores: str
    table: Path

    @property
    def toml(self) -> Path:
        return self.root / "curate.toml"

    def dataset(self, name: str = "digits") -> DatasetSpec:
        return find_dataset(name, self.config)

    def options(self, out: str | Path, **changes: object) -> ScoreOptions:
        """Scoring options for the digits with the reference, in this process."""
        spec = changes.pop("dataset", self.dataset())
        known = dict(
            dataset=spec,
            reference=find_model(self.reference, task="classification", num_classes=10, config=self.config),
            out=str(out),
            precision="fp32",
            runner_options=IN_MEMORY,
        )
        return ScoreOptions(**{**known, **changes})


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    root = tmp_path_factory.mktemp("digits")
    toml = root / "curate.toml"
    prepare("digits", root / "data", toml, report=silent)
    for name, channels, layers in (("scorer", [8, 16], [0]), ("learner", [16, 32], [1])):
        arguments = {"channels": channels, "layers": layers}
        add_model(toml, name, {"architecture": "small_resnet", "arguments": arguments, "preprocessing": {"size": 8}})
    config = load_config(toml)
    runs, scores = root / "runs", root / "scores"
    options = RunOptions.of(
        dataset="digits-curated",
        learner="scorer",
        steps=60,
        batch_size=64,
        precision="fp32",
        evaluate=False,
        out=str(runs),
        name="ref",
    )
    train(options, config=config, report=silent)
    made = Digits(root, config, str(runs / "ref"), str(scores), Path())
    summary = score_reference(made.options(scores), silent)
    return Digits(root, config, made.reference, made.scores, Path(summary.folder))


@dataclass(frozen=True)
class Pairs:
    """Captioned digits ("the digit seven"), a `clip` model with weights, and no table yet."""

    root: Path
    config: Config
    captions: dict[str, str]

    def options(self, out: str | Path, **changes: object) -> ScoreOptions:
        known = dict(
            dataset=find_dataset("pairs", self.config),
            reference=find_model("clip", task="image-text", config=self.config),
            out=str(out),
            precision="fp32",
            runner_options=IN_MEMORY,
        )
        return ScoreOptions(**{**known, **changes})


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    from curate.scoring.loading import load_model, save_weights
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("pairs")
    source = load_digits()
    captions = {f"pair-{i:03d}": f"the digit {DIGIT_NAMES[source.target[i]]}" for i in range(60)}
    for shard in range(3):
        members = []
        for i in range(shard * 20, shard * 20 + 20):
            grey = np.rint(source.images[i] * 255 / 16).astype(np.uint8).repeat(6, 0).repeat(4, 1)
            png = encode_png(np.repeat(grey[:, :, None], 3, axis=2))
            members += [(f"pair-{i:03d}.png", png), (f"pair-{i:03d}.txt", captions[f"pair-{i:03d}"].encode())]
        write_tar(root / "data" / f"{shard:05d}.tar", members)
    toml = root / "curate.toml"
    add_dataset(toml, "pairs", {"train": "data/{00000..00002}.tar", "text": "txt"})
    (root / "clip.json").write_text(json.dumps(TINY_CLIP), encoding="utf-8")
    add_model(toml, "untrained-clip", {"config": "clip.json"})
    model = load_model(find_model("untrained-clip", task="image-text", config=load_config(toml)), seed=1)
    save_weights(model.module, root / "clip.safetensors")
    add_model(toml, "clip", {"config": "clip.json", "weights": "clip.safetensors"})
    return Pairs(root, load_config(toml), captions)


def touch(folder: Path, *names: str, size: int = 3) -> None:
    """Files of so many bytes, with the folders above them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these (name, content), in this order, repeated names and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    """(name, content) of every member, in order."""
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def reshard(source: Iterable[Path], folder: Path, shards: int) -> list[Path]:
    """The same examples (two members each) dealt over many small tars, in order."""
    members = [member for path in source for member in read_tar(path)]
    per_shard = 2 * -(-len(members) // 2 // shards)
    return [
        write_tar(folder / f"{i:05d}.tar", members[i * per_shard : (i + 1) * per_shard])
        for i in range(-(-len(members) // per_shard))
    ]


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


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content; locks aside."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def replace_member(path: Path, replacements: Mapping[str, bytes | None]) -> None:
    """Give members of a tar other bytes (None leaves one out)."""
    names = [name for name, _ in read_tar(path)]
    assert set(replacements) <= set(names), f"{sorted(replacements)} not all in {names[:4]}..."
    members = [(name, replacements.get(name, content)) for name, content in read_tar(path)]
    write_tar(path, [(name, content) for name, content in members if content is not None])
