"""Whole runs and training steps that ranks share in tests. It stands here because a new process can import it by name."""

import os
import signal
from pathlib import Path

import pytest
import torch
from curate.datasets.spec import load_config
from curate.errors import ShardError, WriteError
from curate.scoring import ModelSpec, load_model
from curate.scoring.policies import Policy
from curate.training import RunOptions, checkpoint, run, train
from curate.training.evaluate import evaluate
from curate.training.group import Group
from curate.training.loop import train_loop
from curate.training.scorer import RunScorer
from curate.training.trainee import Trainee

from support.prepared import TINY_CLIP
from support.tiny import CutError, options_of, shard, write_toml


def online_loss(known):
    return known.online_B


LEARNERS_LOSS = Policy("learners-loss", online_loss, online="learner")


def five_shards(folder, models, changes):
    """110 images in five shards, a test split, and `one`, the run of a single process."""
    for i in range(5):
        shard(folder / f"shards/{i}.tar", range(22 * i, 22 * i + 22))
    write_toml(folder, models, train="shards/*.tar", test="shards/[01].tar")
    train_in(Group(), folder, False, None, None, {"name": "one", **changes})
    return folder


def train_in(group, folder, resume, until, then, changes):
    """`train` of tiny.py's folder on all ranks: what it returns and what was reported. After step `until` it is cut off, or
    `then` is called."""
    told = []

    def after_step(done):
        if done == until:
            if then is None:
                raise CutError
            then(group)

    changes = {name: group.rank if value == "rank" else value for name, value in changes.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train_loop", lambda job: train_loop(job, after_step))
        try:
            options, config = options_of(Path(folder), **changes), load_config(Path(folder) / "curate.toml")
            return train(options, config=config, resume=resume, report=told.append, group=group), told
        except CutError:
            return None, told


def trained(group, options, config):
    """The summary of a run that all ranks share."""
    return train(RunOptions.of(**options), config=config, report=lambda line: None, group=group)


def ends(group, *how):
    """The same where it ends with an error: its kind, its text, and the rank that reports it, if that is another one."""
    try:
        train_in(group, *how)
    except BaseException as e:
        return type(e).__name__, str(e), e.reported_by
    return None


def measured(group, models_and_datasets):
    """`evaluate` of each model on each data set by all ranks, in small batches."""
    return [
        evaluate(load_model(spec), dataset, device=torch.device("cpu"), precision="fp32", batch_size=7, ranks=group)
        for spec, dataset in models_and_datasets
    ]


def terminates_1(group):
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def kills_1(group):
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def fails_in_scoring_on_1(group):
    def score(*_):
        raise ShardError("shard '1.tar' is cut")

    if group.rank == 1:
        RunScorer.score = score


def breaks_disk(group):
    def save(*_):
        raise WriteError("the disk is full")

    checkpoint.save = save


def model_of(kind):
    """A small model in float64, with every example's image and target made from its number."""
    if kind == "classes":
        spec = ModelSpec(
            name="m",
            task="classification",
            num_classes=10,
            architecture="vit_tiny_patch16_224",
            arguments={"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
            preprocessing={"size": 16},
        )
        return load_model(spec)
    config = {**TINY_CLIP, **({"init_logit_bias": -3.0} if kind == "sigmoid" else {})}
    return load_model(ModelSpec(name="m", task="image-text", architecture="clip", open_clip_config=config))


CAPTIONS = ["a cat", "a dog", "a cat", "two birds", "a cat", "a dog", "the sea"]


def steps_of(group, own):
    """Two steps on the `own[rank]` of 7 examples, by (kind of model, accumulate)."""
    kinds = ("classes", "softmax", "sigmoid")
    return {(kind, parts): step_of(group, kind, own, parts) for kind in kinds for parts in (1, 2)}


def step_of(group, kind, own, accumulate):
    """(the whole batch's losses, the weights after the steps)."""
    torch.manual_seed(0)
    model = model_of(kind)
    model.module.double()
    model.normalize = lambda rows: rows.double().permute(0, 3, 1, 2) / 255 - 0.5
    trainee = Trainee(
        model, lr=0.1, optimizer="sgd", accumulate=accumulate, device=torch.device("cpu"), group=group, weight_decay=0.0
    )
    size = model.geometry.size
    pixels = torch.randint(0, 255, (7, size, size, 3), generator=torch.Generator().manual_seed(1))
    targets = model.targets(CAPTIONS if model.task.compares else range(7))
    rows = torch.tensor(own[group.rank])
    trainee.join(len(rows))
    losses = []
    for _ in range(2):
        loss = trainee.step(pixels[rows], targets[rows], weight=len(rows) * group.size / 7)
        losses.append(float(group.sum(loss) / group.size))
    return losses, {name: value.detach().numpy() for name, value in model.module.named_parameters()}
