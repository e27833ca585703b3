"""Every example, run as a user runs it, with the real library; what it prints is what its docstring promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import webdataset as wds

EXAMPLES = Path(__file__).parents[2] / "examples"
RESUMED = "the run resumed at step 50 chooses the same and ends with the same weights: True"
WRONG = re.compile(r"wrong labels: ([\d.]+)% of the data, ([\d.]+)% of the ([\d,]+) chosen")
DIGITS = "zero one two three four five six seven eight nine".split()


def run(name: str, *arguments: object, ranks: int = 1) -> str:
    """The standard output of an example, started by torchrun where it has several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check_chosen(printed: str, expected: int) -> None:
    """Less than half of the wrong labels that a uniform draw would have chosen."""
    (found,) = WRONG.findall(printed)
    data, among, count = float(found[0]), float(found[1]), int(found[2].replace(",", ""))
    assert data == 40 and among < data / 2 and count == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    run("noisy_digits", folder)
    return folder


def test_plain_torch(folder):
    tables = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    printed = run("plain_torch", folder)
    check_chosen(printed, 6_400)
    assert RESUMED in printed
    assert tables and tables == {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}  # prepared once


def test_ddp_loop(folder):
    printed = run("ddp_loop", folder, ranks=2)
    check_chosen(printed, 6_400)
    (moved,) = re.findall(r"2 ranks chose 6,400 digits together; ([\d.]+)% of them moved", printed)
    assert 0 < float(moved) < 15


def test_open_clip_loop(folder):
    printed = run("open_clip_loop", "--folder", folder)
    check_chosen(printed, 3_840)
    (before, after) = re.findall(r"caption: (\d+) before, (\d+) after", printed)[0]
    assert int(after) < int(before) / 2
    assert "open_clip loads open_clip_loop.pt with the same weights: True" in printed

    # The checkpoint in plain open_clip: its model reads digits that no training saw.
    open_clip.add_model_config(folder / "tiny-clip.json")
    model, _, preprocess = open_clip.create_model_and_transforms(
        "tiny-clip", pretrained=str(folder / "open_clip_loop.pt")
    )
    tests = (
        wds.WebDataset(str(folder / "test/{00000..00001}.tar"), shardshuffle=False).decode("pil").to_tuple("png", "cls")
    )
    images, labels = zip(*tests.map_tuple(preprocess, int), strict=True)
    with torch.no_grad():
        texts = model.eval().encode_text(open_clip.get_tokenizer("tiny-clip")([f"the digit {d}" for d in DIGITS]), True)
        read = (model.encode_image(torch.stack(images), True) @ texts.T).argmax(1)
    assert (read == torch.tensor(labels)).float().mean() > 0.4


def test_timm_loop(folder):
    printed = run("timm_loop", folder)
    check_chosen(printed, 1_920)
    assert float(re.findall(r"test accuracy of the averaged weights: ([\d.]+)%", printed)[0]) > 70


@pytest.mark.examples
@pytest.mark.parametrize("name", ["lightning_loop", "hf_trainer"])
def test_frameworks(folder, name):
    printed = run(name, folder)
    check_chosen(printed, 6_400)
    assert RESUMED in printed


def test_every_example_is_short_and_run_here():
    files = list(EXAMPLES.glob("*.py"))
    assert {path.stem for path in files} == {
        "noisy_digits",
        "plain_torch",
        "ddp_loop",
        "open_clip_loop",
        "timm_loop",
        "lightning_loop",
        "hf_trainer",
    }
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 120
