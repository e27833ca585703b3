"""Whether a model takes what it will be given: found out on shapes alone, before anything is read, trained or scored."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import CurateError, ModelError, first_line
from .gradients import add_gradients
from .models import Model


def on_meta(module: nn.Module) -> nn.Module:
    """A copy without storage: enough for shapes and FLOPs, and made without copying a weight."""
    bare: dict[int, Any] = {}
    for parameter in module.parameters():
        bare[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        bare[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, memo=bare).to("meta")


def with_shared_tensors(module: nn.Module) -> nn.Module:
    """A copy of the modules alone: its parameters and buffers are the very tensors of `module`."""
    own: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo=own)


def meta_inputs(model: Model, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and targets of the right shapes, without storage."""
    size = model.geometry.size
    images = torch.empty(batch_size, model.preprocessing.channels, size, size, device="meta")
    one = model.targets([model.task.blank()])
    return images, torch.empty(batch_size, *one.shape[1:], dtype=one.dtype, device="meta")


def check_fit(model: Model, *, trains: bool = True) -> int:
    """Pass two blank examples through the model, as it scores and, where it `trains`, as it trains.

    Returns how many outputs it has. Raises ModelError where it does not take its images or targets, or where the task
    cannot use what it gives.
    """
    task, name = model.task, model.spec.name
    blank = model.targets([task.blank()])
    module = on_meta(model.module)
    images, targets = meta_inputs(model, 2)
    side = f"{model.geometry.size} x {model.geometry.size} pixels"
    found = 0
    for mode, run in (("trains", task.forward), ("scores", task.infer)):
        if mode == "trains" and not trains:
            continue
        module.train(mode == "trains")
        try:
            with torch.no_grad(), _disable_current_modes():  # no arithmetic, so nobody's FLOP counter sees it
                output = run(module, images, targets)
        except CurateError:
            raise
        except Exception as e:  # a library's own: whatever a module raises for shapes that it does not take
            raise ModelError(
                f"model '{name}': does not take images of {side} as it {mode}: {first_line(e)}; set preprocessing.size, "
                "or correct the entry"
            ) from e
        try:
            found = task.outputs(model, output, blank)
        except ValueError as e:
            raise ModelError(f"model '{name}': {e}") from None
    return found


def some_unused(model: Model) -> bool:
    """Whether a training step gives some parameters no gradient, such as those of a head that nothing reads."""
    module, (images, targets) = on_meta(model.module).float().train(), meta_inputs(model, 2)
    meta = Model(model.spec, model.task, module, model.preprocessing, model.tokenizer)
    add_gradients(meta, module, model.task.training_loss(model), images.__getitem__, targets)
    return any(p.requires_grad and p.grad is None for p in module.parameters())
