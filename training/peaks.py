"""Peaks of memory, measured by running a model on tensors that have a shape and a device but no storage."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..scoring.forward import autocast
from ..scoring.gradients import add_gradients, checkpoint_activations
from ..scoring.models import Model
from ..scoring.settings import Precision
from .trainee import Trainee


def training_peak(trainee: Trainee, b: int, accumulate: int, checkpointing: bool, device: torch.device) -> int:
    """The most bytes that activations, gradients and temporaries of one step take at one time."""
    first = -(-b // accumulate)
    rows = b if accumulate == 1 else min(b, 2 * first)
    with _fake(trainee.model, device) as (model, live):
        model.module.train()
        if checkpointing:
            checkpoint_activations(model)
        # From the second part on gradients are held while activations are made, so two parts tell of all.
        add_gradients(
            model,
            model.module,
            trainee.loss,
            lambda part: _images(model, len(range(b)[part]), device),
            _targets(model, rows, device),
            accumulate=min(accumulate, 2),
            computing=lambda: autocast(device, trainee.precision),
        )
    peak = live.peak
    if accumulate > 1 and model.task.compares:  # all are compared before the first part is computed with a graph
        peak = max(peak, comparing_peak(trainee, b, device))
    return peak


def comparing_peak(trainee: Trainee, b: int, device: torch.device) -> int:
    """The most bytes of a loss that compares all of b embeddings, and of the embeddings and their gradients."""
    with _fake(trainee.model, device) as (model, live):
        with torch.no_grad():
            output = model.task.forward(model.module, _images(model, 2, device), _targets(model, 2, device))
        values: list[Any] = list(output.values()) if isinstance(output, dict) else list(output)
        live.clear()
        whole = [torch.empty(b, v.shape[1], dtype=v.dtype, device=device) for v in values[:2]]
        leaves = [v.detach().requires_grad_() for v in (*whole, *values[2:])]
        trainee.loss(leaves, _targets(model, b, device)).backward()
    return live.peak


def scoring_peak(model: Model, size: int, precision: Precision, device: torch.device) -> int:
    """The most bytes that scoring `size` examples takes at one time."""
    with _fake(model, device) as (fake, live), torch.no_grad(), autocast(device, precision):
        fake.module.eval()
        targets = _targets(fake, size, device)
        fake.task.scored(fake.task.infer(fake.module, _images(fake, size, device), targets), targets)
    return live.peak


def optimizer_bytes(trainee: Trainee, device: torch.device) -> tuple[int, int]:
    """(its state, the most that a step takes beside it), found by two steps on parameters without storage.

    What Adam takes, where that cannot be done.
    """
    parameters = parameter_bytes(trainee.module)
    together = parameters if device.type == "cuda" else 0  # on a GPU all parameters are updated at one time
    model = _without_storage(trainee.model, "meta")
    try:
        optimizer = trainee.make_optimizer(model)
        for parameter in model.module.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        state = [v for v in tree_leaves(optimizer.state_dict()["state"]) if isinstance(v, torch.Tensor)]
        with _Live([*model.module.parameters(), *state]) as live:
            optimizer.step()
    except (RuntimeError, NotImplementedError):
        return 2 * parameters, together
    return sum(value.nbytes for value in state), max(live.peak, together)


class _Live(TorchDispatchMode):
    """Adds up the bytes of all storages that operators make, as long as these live."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.clear()

    def clear(self) -> None:
        self.sizes: dict[int, int] = dict(self._known)
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += self.sizes[key]
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, key)
        return made

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


@contextmanager
def _fake(model: Model, device: torch.device) -> Iterator[tuple[Model, _Live]]:
    """The model on fake tensors of this device, within a count of what lives."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        fake = _without_storage(model, device)
        with _Live([*fake.module.parameters(), *fake.module.buffers()]) as live:
            yield fake, live


def _without_storage(model: Model, device: torch.device | str) -> Model:
    """A copy whose tensors are empty ones of this device; only where tensors are fake does a device's take no memory."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made

    module = model.module
    memo = {id(tensor): empty(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return Model(model.spec, model.task, copy.deepcopy(module, memo), model.preprocessing, model.tokenizer)


def _images(model: Model, size: int, device: torch.device) -> torch.Tensor:
    side, channels = model.geometry.size, model.preprocessing.channels
    return torch.empty(size, side, side, channels, device=device).permute(0, 3, 1, 2)  # as `Model.normalize` gives them


def _targets(model: Model, size: int, device: torch.device) -> torch.Tensor:
    one = model.targets([model.task.blank()])
    return torch.zeros(size, *one.shape[1:], dtype=one.dtype, device=device)


def parameter_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
