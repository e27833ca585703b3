"""A step of the real training loop over a step of a plain PyTorch loop. About 1.5 minutes on 2 cores.

Ours is `train_loop` under policy uniform as `curate train` calls it, with its data stream, schedule, ledger and metrics,
on CIFAR-10N decoded beforehand (what every epoch but the first sees). A round is shorter than the 30 seconds between
two checkpoints, so what one of those costs is measured by itself. The plain loop indexes a float32 tensor of
all pictures, normalised beforehand, and does forward, loss, backward and optimizer step: same model, optimizer,
precision and batch size; no augmentation on either side. The first steps of every round are warm-up and not timed.

Where others compute on the same cores, OpenMP's threads wait for one another and both sides slow down tenfold;
OMP_NUM_THREADS=1 then still gives a ratio, of another setting. The figure's name says how many threads it was.

Goal: plain seconds a step over ours at least 0.97.
"""

from __future__ import annotations

import shutil
import time
from itertools import islice
from pathlib import Path

import timm.optim
import torch
from curate.ledger import Ledger, StepCost
from curate.scoring.forward import autocast, best_device, best_precision
from curate.scoring.loading import load_model
from curate.scoring.models import Model, ModelSpec
from curate.scoring.policies import UNIFORM
from curate.scoring.selector import Selector
from curate.training import checkpoint
from curate.training.keeping import Keeping
from curate.training.loop import TrainingJob, train_loop
from curate.training.pace import CHECKPOINT_SECONDS, Pace
from curate.training.records import RunRecords
from curate.training.signals import Stop
from curate.training.sub import SubBatches
from curate.training.superbatch import SuperBatches
from curate.training.timing import Stages
from curate.training.trainee import Trainee
from curate.units import Report
from data import part_of_cifar10n
from measuring import Benchmark, Figure, in_turn, ratios

ROUNDS, STEPS, WARM_UP = 7, 60, 10
BATCH_SIZE, SHARDS, LR = 128, 10, 2e-3
ARGUMENTS = {"channels": [32, 64, 128, 256], "layers": [0, 1, 1]}
GOAL = 0.97


def measure(work: Path, report: Report) -> list[Figure]:
    spec = part_of_cifar10n(work, "cifar10n-10-shards", SHARDS, report)
    data = SuperBatches(spec, BATCH_SIZE, views={"learner": new_model().geometry})
    epoch = list(islice(data, SHARDS * 1000 // BATCH_SIZE))
    data.close()
    pixels = torch.cat([batch.views["learner"] for batch in epoch])
    labels = torch.cat([torch.as_tensor(batch.targets) for batch in epoch])
    images = new_model().normalize(pixels)
    found = in_turn(
        ROUNDS,
        report,
        ours=lambda: our_step(work, data),
        plain=lambda: plain_step(images, labels),
    )
    saved = [checkpoint_seconds(work) for _ in range(ROUNDS)]
    threads = f"{torch.get_num_threads()} threads"
    return [
        Figure(
            name=f"plain step over ours (time), {threads}", samples=ratios(found["plain"], found["ours"]), goal=GOAL
        ),
        Figure(
            name="a checkpoint, of the time between two",
            samples=tuple(100 * s / CHECKPOINT_SECONDS for s in saved),
            unit="%",
        ),
        Figure(name="train_loop", samples=tuple(1000 * s for s in found["ours"]), unit="ms a step"),
        Figure(name="plain PyTorch loop", samples=tuple(1000 * s for s in found["plain"]), unit="ms a step"),
    ]


def new_model() -> Model:
    spec = ModelSpec(
        name="learner", task="classification", architecture="small_resnet", arguments=ARGUMENTS, num_classes=10
    )
    return load_model(spec, seed=0)


def new_trainee() -> Trainee:
    device = best_device()
    return Trainee(new_model(), lr=LR, device=device, precision=best_precision(device))


def our_step(work: Path, data: SuperBatches) -> float:
    run = work / "runs" / "step"
    shutil.rmtree(run, ignore_errors=True)
    device = best_device()
    timing, learner, records = Stages(device), new_trainee(), RunRecords(run, lambda line: None)
    job = TrainingJob(
        run=run,
        subs=SubBatches(data, Selector(UNIFORM, BATCH_SIZE), device=device, timing=timing),
        learner=learner,
        online=None,
        steps=STEPS,
        warmup=round(0.05 * STEPS),
        cooldown=None,
        augment="none",
        augmenting=torch.Generator(),
        cost=StepCost(learner_train=1.0),
        ledger=Ledger(),
        records=records,
        pace=Pace(STEPS, BATCH_SIZE, log_every=20, checkpoint_every=None, report=lambda line: None),
        timing=timing,
        stop=Stop(),
        keeping=Keeping(run, learner, records, dict, quality="top1", steps=STEPS),
    )
    done = []
    train_loop(job, after_step=lambda step: done.append(time.perf_counter()))
    return (done[-1] - done[WARM_UP - 1]) / (STEPS - WARM_UP)


def checkpoint_seconds(work: Path) -> float:
    trainee = new_trainee()
    size = trainee.model.geometry.size
    pixels = torch.zeros(BATCH_SIZE, size, size, 3, dtype=torch.uint8, device=best_device())
    labels = torch.zeros(BATCH_SIZE, dtype=torch.int64, device=best_device())
    trainee.step(pixels, labels)  # until then the optimizer has no state to save
    run = work / "runs" / "checkpoint"
    shutil.rmtree(run, ignore_errors=True)
    started = time.perf_counter()
    checkpoint.save(run, 1, {"learner": trainee.state()}, {}, {})
    return time.perf_counter() - started


def plain_step(images: torch.Tensor, labels: torch.Tensor) -> float:
    device = best_device()
    module = new_model().module.to(device).to(memory_format=torch.channels_last).train()
    optimizer = timm.optim.create_optimizer_v2(module, opt="adamw", lr=LR, weight_decay=0.05)
    precision = best_precision(device)
    order = torch.randperm(len(images))
    done = []
    for step in range(STEPS):
        start = step * BATCH_SIZE % (len(order) - BATCH_SIZE)
        chosen = order[start : start + BATCH_SIZE]
        x, y = images[chosen].to(device), labels[chosen].to(device)
        with autocast(device, precision):
            logits = module(x)
        loss = torch.nn.functional.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        done.append(time.perf_counter())
    return (done[-1] - done[WARM_UP - 1]) / (STEPS - WARM_UP)


BENCHMARK = Benchmark(
    "train_step",
    "a step of train_loop takes at most 1 / 0.97 of a plain PyTorch step's time",
    measure,
    {
        "model": f"small_resnet {ARGUMENTS} at 32 px",
        "batch_size": BATCH_SIZE,
        "precision": best_precision(best_device()),
        "steps_a_round": STEPS - WARM_UP,
    },
)
