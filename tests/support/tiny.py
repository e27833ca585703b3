"""The smallest data set that trains: random images in a tar, two models, and runs of them that end when they are told to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curate.datasets.preparers.writer import encode_png
from curate.datasets.spec import load_config
from curate.training import RunOptions, run, train
from curate.training.loop import train_loop

from support.commands import silent
from support.tars import write_tar

MODELS = """
[models.learner]
architecture = "small_resnet"
arguments = { channels = [8, 16], layers = [0] }
preprocessing = { size = 8 }
"""


class CutError(Exception):
    """Stands for a kill: raised after a step, where nothing is saved on the way out."""


def shard(path: Path, seeds: Iterable[int], label: int | None = None) -> Path:
    """A tar of random images of 16 pixels a side. The class is the seed's last digit, or `label`."""
    members = []
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        target = seed % 10 if label is None else label
        members += [(f"{seed:03d}.png", encode_png(pixels)), (f"{seed:03d}.cls", str(target).encode())]
    return write_tar(path, members)


def write_toml(folder: Path, models: str = MODELS, **entry: Any) -> None:
    values = {"train": "a.tar", "classes": 10, **entry}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (folder / "curate.toml").write_text("\n".join(["[datasets.d]", *lines, models]))


def options_of(folder: Path, **changes: Any) -> RunOptions:
    known = dict(
        dataset="d",
        learner="learner",
        steps=12,
        batch_size=16,
        precision="fp32",
        log_every=1,
        checkpoint_every=4,
        evaluate=False,
        out=str(folder / "runs"),
        name="run",
    )
    return RunOptions.of(**{**known, **changes})


def go(folder: Path, resume: bool = False, report: Any = silent, **changes: Any) -> dict[str, Any]:
    """One call of `train` in a folder with a curate.toml."""
    return train(
        options_of(folder, **changes), config=load_config(folder / "curate.toml"), resume=resume, report=report
    )


@contextmanager
def cut_after(step: int) -> Iterator[None]:
    """Within, a run is cut off after a step."""

    def after_step(done: int) -> None:
        if done == step:
            raise CutError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutError):
        patch.setattr(run, "train_loop", lambda job: train_loop(job, after_step))
        yield


def go_until(step: int, folder: Path, resume: bool = False, **changes: Any) -> None:
    """The same, cut off after a step."""
    with cut_after(step):
        go(folder, resume, **changes)


def weights(folder: Path) -> bytes:
    return (folder / "runs/run/checkpoints/learner.safetensors").read_bytes()
