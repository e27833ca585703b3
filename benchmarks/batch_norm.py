"""How random the choice is at first where the online model has BatchNorm. About a minute on 2 cores.

A model scores in evaluation mode, by running statistics that begin at zeros and ones. Here a small ResNet trains as a run's
online model does, on the half of each super-batch with the highest loss; before each step its choice is compared with the one
by the statistics of the super-batch itself (training mode): a second opinion, not the truth. A choice at random would
share 50 %. Both where the first steps count for more of the statistics (`closely`), which runs do not do since it chose worse,
and without.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from curate.datasets.spec import DatasetSpec
from curate.scoring.forward import score_batch
from curate.scoring.gradients import batch_norms
from curate.scoring.loading import load_model
from curate.scoring.models import Model, ModelSpec
from curate.training.schedule import learning_rate
from curate.training.superbatch import SuperBatches
from curate.training.trainee import Trainee
from curate.units import Report
from data import part_of_cifar10n
from measuring import Benchmark, Figure

SEEDS, B, b, STEPS, WARM_UP = 4, 256, 128, 41, 18
AT = (0, 1, 2, 5, 10, 20, 40)
MODEL = "small_resnet_w8_plain"


def measure(work: Path, report: Report) -> list[Figure]:
    spec = part_of_cifar10n(work, "cifar10n-2-shards", 2, report)
    figures = []
    for closely, told in ((False, "the layers' own momentum"), (True, "first steps closely")):
        shares = [overlaps(spec, seed, closely) for seed in range(SEEDS)]
        report(f"  {told}: done")
        figures += [
            Figure(name=f"the same half at step {step}, {told}", samples=tuple(s[i] for s in shares), unit="%")
            for i, step in enumerate(AT)
        ]
    return figures


def overlaps(spec: DatasetSpec, seed: int, closely: bool) -> list[float]:
    device = torch.device("cpu")
    model = load_model(ModelSpec(name="online", task="classification", architecture=MODEL, num_classes=10), seed=seed)
    trainee = Trainee(model, lr=2e-3, device=device)
    data = SuperBatches(spec, B, views={"online": model.geometry}, seed=seed)
    found = []
    for step, batch in zip(range(STEPS), data, strict=False):
        pixels, labels = batch.views["online"], batch.targets
        assert isinstance(labels, torch.Tensor)
        chosen = score_batch(model, pixels, labels).loss.topk(b).indices
        if step in AT:
            other = by_the_batch(model, pixels, labels).topk(b).indices
            found.append(100 * len(set(chosen.tolist()) & set(other.tolist())) / b)
        with early_statistics(model.module, step) if closely else nullcontext():
            trainee.step(pixels[chosen], labels[chosen], learning_rate(step, 10 * STEPS, 1.0, WARM_UP))
    data.close()
    return found


@contextmanager
def early_statistics(module: torch.nn.Module, step: int) -> Iterator[None]:
    """What a pass in the block adds to BatchNorm's running statistics counts for 2 / (step + 2) of them, where a layer's own
    momentum would count it for less. `step` counts from 0."""
    share = 2 / (step + 2)
    found = []
    for layer in batch_norms(module):
        if layer.track_running_stats and layer.momentum and share > layer.momentum:
            means = [b for b in (layer.running_mean, layer.running_var) if b is not None]
            found += [(b, b.clone(), share / layer.momentum) for b in means]
    yield
    with torch.no_grad():
        for statistic, before, times in found:
            statistic.copy_(before + times * (statistic - before))


def by_the_batch(model: Model, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Losses by the statistics of this batch, which leave no trace."""
    module = copy.deepcopy(model.module).train()
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(module(model.normalize(pixels)), labels, reduction="none")


BENCHMARK = Benchmark(
    "batch_norm",
    "how much of the choice is the same by a super-batch's own statistics (chance: 50 %; no goal)",
    measure,
    {"model": MODEL, "data": "CIFAR-10N, 2,000 images", "B": B, "b": b, "policy": "hard-learner, top half"},
)
