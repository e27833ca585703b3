"""The gradients of one training step, whole or in parts: what a run executes, its ledger counts and its memory estimate
measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ModelError
from .models import Model

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
# What a model without checkpointing raises, by library.
_UNABLE = (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError)


def add_gradients(
    model: Model,
    run: Any,
    loss: Loss,
    images: Callable[[slice], torch.Tensor],
    targets: Any,
    *,
    accumulate: int = 1,
    recomputes: bool = False,
    computing: Callable[[], AbstractContextManager[Any]] = nullcontext,
    weight: float = 1.0,
    unshared: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """Add the gradients of `loss`, a mean over the batch, times `weight` to the parameters. Returns the detached loss, times
    `weight` too.

    `run` is called as the module, within `computing()`. `images` gives the normalised images of some rows, so that those of
    one part alone are in memory. `targets` are a tensor, or rows of several. The batch is computed in `accumulate` parts,
    of which one part's activations are held. Loss and gradients are those of the whole batch; what a layer computes over a
    batch (BatchNorm) or draws at random (dropout), it computes and draws for each part. `recomputes` says that
    `checkpoint_activations` is on.

    Where several ranks have a part of one batch each, all parts but the last are computed within `unshared()`.
    """
    parts = _parts(len(targets), accumulate)
    backward = partial(still_statistics, model.module) if recomputes else nullcontext
    if accumulate > 1 and model.task.compares:  # also where this rank has a single row: all ranks do the same

        def whole(output: Any, all_targets: torch.Tensor) -> torch.Tensor:
            value = loss(output, all_targets)
            return value if weight == 1 else value * weight

        return _in_two_passes(model, run, whole, images, targets, parts, computing, backward, unshared)
    total = None
    for part in parts:
        with unshared() if part is not parts[-1] else nullcontext():
            with computing():
                output = model.task.forward(run, images(part), targets[part])
            value = loss(output, targets[part])
            share = weight * len(targets[part]) / len(targets)
            if share != 1:
                value = value * share
            with backward():
                value.backward()
        total = value.detach() if total is None else total + value.detach()
        del output, value  # else they are held while the next part is computed
    assert total is not None
    return total


def _in_two_passes(
    model: Model,
    run: Any,
    loss: Loss,
    images: Callable[[slice], torch.Tensor],
    targets: torch.Tensor,
    parts: list[slice],
    computing: Callable[[], AbstractContextManager[Any]],
    backward: Callable[[], AbstractContextManager[Any]],
    unshared: Callable[[], AbstractContextManager[Any]],
) -> torch.Tensor:
    """GradCache (Gao et al., arXiv 2101.06983): a loss that compares all pairs of the batch needs all of their embeddings.

    They are made without a graph first. The loss is computed on them, and its gradients on them are carried through
    each part, which is computed a second time with the same random numbers.
    """
    device = targets.device
    made: list[list[torch.Tensor]] = []
    states = []
    with torch.no_grad(), still_statistics(model.module):
        for part in parts:
            states.append(_random_state(device))
            with computing():
                made.append(_tensors(model.task.forward(run, images(part), targets[part])))
    # Image and text embeddings of all pairs; then scale and bias, which are the same for all.
    image_BD, text_BD = (torch.cat([values[i] for values in made]) for i in (0, 1))
    leaves = [value.detach().requires_grad_() for value in (image_BD, text_BD, *made[0][2:])]
    made.clear()
    value = loss(leaves, targets)
    value.backward()

    after = _random_state(device)
    for part, state in zip(parts, states, strict=True):
        last = part is parts[-1]
        _set_random_state(device, state)
        with nullcontext() if last else unshared():
            with computing():
                outputs = _tensors(model.task.forward(run, images(part), targets[part]))
            gradients: list[torch.Tensor | None] = [leaf.grad[part] for leaf in leaves[:2] if leaf.grad is not None]
            gradients += [leaf.grad for leaf in leaves[2:]] if last else []
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=False) if o.requires_grad and g is not None]
            with backward():
                torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        del outputs, gradients, pairs
    _set_random_state(device, after)
    return value.detach()


def _parts(size: int, count: int) -> list[slice]:
    """`count` consecutive parts of `size` rows, as equal as can be."""
    ends = [size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(ends) if b > a]


def _tensors(output: Any) -> list[torch.Tensor]:
    return list(output.values()) if isinstance(output, dict) else list(output)


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Layers that normalise over the batch, and so do otherwise for a part of it."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def checkpoint_activations(model: Model) -> None:
    """Let the model keep the inputs of its blocks alone, and compute the rest again in the backward pass.

    Raises ModelError where the model, or its image tower, cannot.
    """
    module: Any = model.module
    try:
        module.set_grad_checkpointing(True)
        if hasattr(module, "visual"):
            # open_clip only warns, or says nothing, where an image tower cannot.
            from open_clip.modified_resnet import ModifiedResNet

            if isinstance(module.visual, ModifiedResNet):
                raise ValueError
            if hasattr(module.visual, "trunk"):
                module.visual.trunk.set_grad_checkpointing(True)
    except _UNABLE:
        raise ModelError(
            f"model '{model.spec.name}' ({model.spec.architecture}) has no activation checkpointing; leave "
            "--grad-checkpointing out, and use --accumulate to save memory"
        ) from None


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm's running statistics stay as they are, since these examples are counted in another pass."""
    layers = [layer for layer in batch_norms(module) if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    counts = [None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone() for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum, count in zip(layers, momenta, counts, strict=True):
            layer.momentum = momentum
            if count is not None and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(count)
