"""The data of the examples: real handwritten digits, 40 % of them with a label that we made wrong, and their scores.

    python examples/noisy_digits.py [FOLDER]        # 25 s on one CPU core, once for all examples

It writes WebDataset shards of scikit-learn's 1,797 digits (300 clean ones for the reference, 1,200 to train on, 297 to
test on), trains a small reference on the clean ones with `curate.train`, and scores the 1,200 with
`curate.score_reference`. Every image has a label ("7") and a caption ("the digit seven"), so that the same shards are
two data sets: `digits` and `pairs`.

The corruption is synthetic: it stands for the wrong labels of real data. Which labels are wrong is written to
wrong.json. Nothing that trains reads that file; the examples read it to print the share of wrong labels that they chose.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import curate
import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "examples"
CLEAN, TRAIN, WRONG = 300, 1200, 480  # examples of each part, and how many of those to train on get a wrong label
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CONFIG = """
[datasets]
digits = { train = "train/*.tar", test = "test/*.tar", label = "cls", classes = 10 }
digits-clean = { train = "clean/*.tar", label = "cls", classes = 10 }
pairs = { train = "train/*.tar", test = "test/*.tar", text = "txt" }
pairs-clean = { train = "clean/*.tar", text = "txt" }

[models]
digits-model = { architecture = "small_resnet", arguments = { channels = [16, 32], layers = [1] }, preprocessing = { size = 8 } }
pairs-model = { config = "tiny-clip.json" }
"""
TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "layers": 1, "width": 64, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "layers": 1, "width": 32, "heads": 2},
}


def prepare(dataset: str, folder: str | Path = FOLDER) -> Path:
    """Make `digits` or `pairs` ready in a folder, where it is not yet. Returns the folder that holds curate.toml.

    The score table is in scores/DATASET.
    """
    folder = Path(folder).resolve()
    ready = folder / "scores" / dataset / "ready"
    if not ready.exists():
        torch.set_num_threads(1)  # more threads gain nothing on images of 8 x 8 pixels
        folder.mkdir(parents=True, exist_ok=True)
        before = Path.cwd()
        os.chdir(folder)
        if not Path("curate.toml").exists():
            _write_digits()
        _score(dataset)
        os.chdir(before)
        ready.touch()
    return folder


# What only preparing needs is imported where it is used, so that an example that finds its data starts fast.
def _write_digits() -> None:
    from PIL import Image
    from sklearn.datasets import load_digits
    from webdataset import ShardWriter

    source, rng = load_digits(), np.random.default_rng(0)
    labels, order = source.target.copy(), rng.permutation(len(source.target))
    clean, train, test = np.split(order, [CLEAN, CLEAN + TRAIN])
    wrong = rng.choice(train, WRONG, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, WRONG)) % 10
    pixels = np.rint(source.images * 255 / 16).astype(np.uint8)
    for part, members in {"clean": clean, "train": train, "test": test}.items():
        Path(part).mkdir(exist_ok=True)
        with ShardWriter(f"{part}/%05d.tar", maxcount=150, verbose=0, mtime=0.0) as shards:
            for i in members:
                png = io.BytesIO()
                Image.fromarray(pixels[i]).convert("RGB").save(png, format="PNG")
                texts = {"cls": str(labels[i]), "txt": f"the digit {NAMES[labels[i]]}"}
                shards.write({"__key__": f"digit-{i:04d}", "png": png.getvalue(), **texts})
    Path("wrong.json").write_text(json.dumps([f"digit-{i:04d}" for i in wrong]), encoding="utf-8")
    Path("tiny-clip.json").write_text(json.dumps(TINY_CLIP), encoding="utf-8")
    Path("curate.toml").write_text(CONFIG, encoding="utf-8")


def _score(dataset: str) -> None:
    """Train a reference on the clean digits, and score the others with it."""
    from curate.datasets.spec import find_dataset
    from curate.scoring.loading import find_model

    settings = {"steps": 100, "batch_size": 50, "lr": 3e-3, "augment": "none", "name": dataset}
    run = curate.RunOptions.of(dataset=f"{dataset}-clean", learner=f"{dataset}-model", **settings)
    curate.train(run, resume=True)
    spec = find_dataset(dataset)
    reference = find_model(f"runs/{dataset}", task=spec.task, num_classes=spec.num_classes)
    here = ("--direct_running_mode=in_memory", "--direct_num_workers=1")  # no worker processes for 1,200 examples
    options = curate.ScoreOptions(dataset=spec, reference=reference, out=f"scores/{dataset}", runner_options=here)
    print(curate.score_reference(options).line())


def print_wrong(chosen: Iterable[str]) -> None:
    """Print the share of wrong labels in the training data of the working folder, and among the chosen keys."""
    wrong, chosen = set(json.loads(Path("wrong.json").read_text(encoding="utf-8"))), list(chosen)
    data, among = len(wrong) / TRAIN, sum(key in wrong for key in chosen) / len(chosen)
    print(f"wrong labels: {data:.1%} of the data, {among:.1%} of the {len(chosen):,} chosen")


if __name__ == "__main__":
    for name in ("digits", "pairs"):
        print(prepare(name, *sys.argv[1:2]))
