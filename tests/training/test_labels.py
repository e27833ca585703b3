"""Labels that the model has no output for, where the data set names no classes: each is named, with its example."""

import io

import numpy as np
import pytest
import torch
from curate.datasets import list_shards
from curate.datasets.spec import Config, find_dataset
from curate.errors import ModelError
from curate.scoring.flops import forward_flops
from curate.scoring.loading import find_model, load_model
from curate.scoring.shard import score_shard
from curate.training import RunOptions, train
from curate.training.evaluate import evaluate
from PIL import Image
from support.commands import silent
from support.tars import write_tar

SMALL = {"architecture": "small_resnet", "arguments": {"channels": [4, 8], "layers": [0]}, "preprocessing": {"size": 8}}
OUTSIDE = "is outside the 10 outputs of model 'small'; set classes = in the data set's entry"


@pytest.fixture
def config(tmp_path):
    members = []
    for i in range(32):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), i * 8, dtype=np.uint8)).save(buffer, "PNG")
        members += [(f"{i:02d}.png", buffer.getvalue()), (f"{i:02d}.cls", str(12 if i == 5 else i % 10).encode())]
    write_tar(tmp_path / "a.tar", members)
    return Config(tmp_path / "curate.toml", {"d": {"train": "a.tar", "test": "a.tar"}}, {"small": SMALL})


@pytest.mark.parametrize("policy", [{}, {"policy": "hard-learner", "online": "small"}])
def test_training_names_the_example(policy, config, tmp_path):
    options = RunOptions.of(dataset="d", learner="small", steps=3, batch_size=16, out=str(tmp_path / "runs"), **policy)
    with pytest.raises(ModelError, match=f"shard 'a', key '05': label 12 {OUTSIDE}"):
        train(options, config=config, report=silent)


def test_scoring_keeps_it_as_a_failure_of_stage_target(config):
    dataset, model = find_dataset("d", config), load_model(find_model("small", task="classification", config=config))
    scored = score_shard(
        dataset,
        list_shards(dataset)[0],
        model,
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=16,
        vectors=False,
        decode_threads=1,
        forward_flops=forward_flops(model).per_example,
    )
    (failure,) = scored.failures
    assert (failure.shard, failure.row, failure.key, failure.stage) == ("a", 5, "05", "target")
    assert f"label 12 {OUTSIDE}" in failure.reason
    assert scored.scores.num_rows == 31


def test_evaluation_names_the_example(config):
    dataset, model = find_dataset("d", config), load_model(find_model("small", task="classification", config=config))
    with pytest.raises(ModelError, match=f"shard 'a', key '05': label 12 {OUTSIDE}"):
        evaluate(model, dataset, device=torch.device("cpu"), precision="fp32")
