"""Real, small data for all tests: scikit-learn's digits as classes and as captioned pictures, a reference, its scores."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from curate.datasets.preparers import prepare
from curate.datasets.preparers.writer import encode_png
from curate.datasets.spec import add_dataset, add_model, load_config
from curate.pipelines.score_reference import score_reference
from curate.scoring.loading import find_model
from curate.training import RunOptions, train
from support.commands import silent
from support.prepared import TINY_CLIP, Digits, Pairs
from support.tars import write_tar

# Tiny tensors gain nothing from more threads, and lose much where other jobs share the cores. The commands that tests
# start run so too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# In the background, and under nohup, these are ignored. Some tests send them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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
