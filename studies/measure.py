"""Seconds, disk and memory of a planned run: its first steps are made here, and its data is read for some seconds."""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..scoring.forward import best_device
from ..scoring.loading import find_model, load_model
from ..scoring.models import Model
from ..scoring.policies import HARD_LEARNER, LEARNABILITY
from ..threads import cores
from ..training.options import BudgetOptions, RunOptions
from ..training.run import train
from ..training.startup import disk_bytes
from ..training.superbatch import SuperBatches
from ..units import Report
from .options import PlanOptions

# Steps of the run that is made here; the first of them warm up caches and compilers and are not counted.
STEPS, WARM = 12, 4
READ_SECONDS, READ_BATCHES = 3.0, 50


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one step with selection: `stages` are its seconds by stage (`data` is the wait for data), `step_seconds` their sum.

    `read_per_second` is how many examples are read and decoded where nothing else runs. `disk_bytes` and `memory_bytes` are
    the most that the run takes; memory is this process's on a CPU, the device's else.
    """

    steps: int
    step_seconds: float
    stages: dict[str, float]
    batch_size: int
    super_batch: int
    read_per_second: float
    cores: int
    device: str
    disk_bytes: int
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """Of all planned steps."""
        return self.steps * self.step_seconds

    @property
    def read_seconds(self) -> float:
        """Of the examples of one step, where nothing else runs."""
        return self.super_batch / self.read_per_second

    @property
    def computing(self) -> float:
        """Seconds of a step but for the wait for data."""
        return self.step_seconds - self.stages.get("data", 0.0)

    @property
    def binds(self) -> str:
        """`reading` where the examples of a step take longer than all else; else the longest stage."""
        if self.read_seconds > self.computing:
            return "reading"
        return max((name for name in self.stages if name != "data"), key=lambda name: self.stages[name])

    @property
    def cores_wanted(self) -> int:
        """Cores of this kind with which reading would keep up with a step."""
        return math.ceil(self.cores * self.read_seconds / self.computing) if self.computing > 0 else self.cores

    def to_dict(self) -> dict[str, Any]:
        derived = ("seconds", "read_seconds", "binds", "cores_wanted")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def measure_run(options: PlanOptions, steps: int, *, config: Config, report: Report) -> Measured:
    """Make the first steps of the planned run in a temporary folder. It chooses by learnability where it has a reference's
    losses, else by the online model's losses, which costs the same but for the join. Raises CurateError as `train` does."""
    assert options.dataset and options.learner and options.selection.online
    stored = options.selection.reference_scores is not None
    moving = options.selection.reference_online
    policy = (LEARNABILITY if stored or moving else HARD_LEARNER).name
    selection = replace(options.selection, policy=policy, reference=options.selection.reference if stored else None)
    dataset = find_dataset(options.dataset, config)
    with tempfile.TemporaryDirectory() as folder:
        run = RunOptions(
            dataset=options.dataset,
            learner=options.learner,
            budget=BudgetOptions(steps=STEPS),
            selection=selection,
            optimization=options.optimization,
            data=options.data,
            records=replace(
                options.records,
                out=folder,
                name="run",
                evaluate=False,
                evaluate_every=None,
                keep_every=None,
                log_every=1,
                checkpoint_every=STEPS + 1,
            ),
        )
        report(f"measuring: {STEPS} steps, then reading for {READ_SECONDS:g} s")
        train(run, config=config, report=_quiet)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    stages = _per_step([(line["step"], line["seconds"]) for line in lines])
    specs = [
        find_model(name, task=dataset.task, num_classes=dataset.num_classes, config=config)
        for name in (options.learner, options.selection.online, moving)
        if name
    ]
    models = [load_model(spec) for spec in specs]
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_memory()
    planned = replace(run, budget=BudgetOptions(steps=steps), records=options.records)
    return Measured(
        steps=steps,
        step_seconds=sum(stages.values()),
        stages=stages,
        batch_size=run.optimization.batch_size,
        super_batch=run.super_batch_size,
        read_per_second=_read(dataset, models, run),
        cores=cores(),
        device=str(best_device()),
        disk_bytes=sum(disk_bytes(models, planned, steps, planned.records.selections_every)),
        memory_bytes=memory,
    )


def _quiet(line: str) -> None:
    """The lines of a run of which nothing is kept."""


def _per_step(found: Iterable[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Seconds of a step by stage, of what cumulative seconds say after the steps that warm up."""
    by_step = dict(found)
    first, last = by_step[WARM], by_step[max(by_step)]
    counted = max(by_step) - WARM
    return {
        name: (last[name] - first.get(name, 0.0)) / counted
        for name in last
        if name not in ("total", "evaluate", "compile", "save")
    }


def _read(dataset: DatasetSpec, models: Iterable[Model], run: RunOptions) -> float:
    """Examples that are read and decoded in a second, for the views of both models, without the cache."""
    views = {str(i): model.geometry for i, model in enumerate(models)}
    made = SuperBatches(dataset, run.super_batch_size, views=views, cache_bytes=0, host_bytes=run.data.host_bytes)
    with closing(made) as batches:
        drawing = iter(batches)
        next(drawing)
        started, read = time.perf_counter(), 0
        for _ in range(READ_BATCHES):
            read += len(next(drawing))
            if time.perf_counter() - started > READ_SECONDS:
                break
        return read / max(1e-9, time.perf_counter() - started)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
