"""Quality on the clean test split, by the task's own measures."""

from __future__ import annotations

from typing import Any

import torch

from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..scoring.forward import best_device, best_precision
from ..scoring.loading import find_model, load_model
from ..scoring.models import Model
from ..scoring.settings import Precision, check_precision


def evaluate(
    model: Model, dataset: DatasetSpec, *, device: torch.device, precision: Precision, batch_size: int = 512
) -> dict[str, float]:
    """All measures that a data set's test split allows, as shares in [0, 1]; `test_examples` is their n.

    Raises SpecError where there is no test split or nothing in it decodes.
    """
    return model.task.evaluate(model, dataset, device=device, precision=precision, batch_size=batch_size)


def evaluate_by_name(name: str, dataset: str, config: Config, precision: str | None = None) -> dict[str, float]:
    """`evaluate` of any model that `curate train` would take, on any data set with a test split. Raises CurateError."""
    check_precision(precision)
    spec = find_dataset(dataset, config)
    model_spec = find_model(name, task=spec.task, num_classes=spec.num_classes, config=config)
    device = best_device()
    model = load_model(model_spec, trained=True).to(device)
    chosen: Any = precision or best_precision(device)
    return evaluate(model, spec, device=device, precision=chosen)
