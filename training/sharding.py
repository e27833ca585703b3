"""The learner in shards (FSDP2): each rank holds its part of every weight, gradient and optimizer state.

Beside group.py the only module that imports torch.distributed: shards are its DTensors. Vectors and scalars (gains, biases, a
logit scale), some thousandth of all weights, stay whole on every rank: scalars cannot be cut, and norms compute in float32 where
matrices are gathered in bf16. What is saved and loaded has whole tensors, as without shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from ..scoring.settings import Precision
from .group import Group

# What timm and open_clip call the list of a model's blocks.
BLOCKS = ("blocks", "resblocks", "layers", "stages")


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The parts of a model that are gathered one after another, inner ones first; none where it has no list of blocks."""
    lists = [part for name, part in module.named_modules() if name.rpartition(".")[2] in BLOCKS]
    found = [block for part in lists if isinstance(part, nn.ModuleList | nn.Sequential) for block in part]
    callable_ = [block for block in found if not isinstance(block, nn.ModuleList | nn.ModuleDict)]
    return [block for block in reversed(callable_) if any(parameter.dim() > 1 for parameter in block.parameters())]


class Sharded:
    """A module whose matrices are cut along their first dimension, and an optimizer that steps on this rank's shards.

    A collective, as are `whole`, `step`, `weights` and `optimizer_state`. All ranks begin with rank 0's weights. Blocks are
    gathered in `precision`: in bf16 a forward pass needs `autocast` too. Raises what torch raises of a module that cannot be
    sharded.
    """

    def __init__(self, module: nn.Module, group: Group, precision: Precision) -> None:
        self._module, self._group = module, group
        floats = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
        for tensor in floats:  # one by one, since a copy of all may not fit
            group.broadcast([tensor.data])
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        mesh = init_device_mesh(floats[0].device.type, (group.size,))
        self._uncut = [parameter for parameter in module.parameters() if parameter.dim() < 2]
        settings: dict[str, Any] = {"mesh": mesh, "ignored_params": set(self._uncut)}
        # As autocast computes: products in bf16; sums over ranks, and what lies between blocks, in float32.
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        rounding: dict[str, Any] = {"mp_policy": half} if precision == "bf16" else {}
        for block in blocks_of(module):
            fully_shard(block, **settings, **rounding)
        fully_shard(module, **settings)
        self._parts: list[Any] = [part for part in module.modules() if isinstance(part, FSDPModule)]
        self._shards: list[tuple[DTensor, nn.Parameter]] = []

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, all weights are gathered, so that ranks may compute as many forward passes as each wants. Nobody may train.

        Otherwise every forward pass would be a collective, and a rank with fewer images, or with an error, would stop all.
        """
        for part in self._parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for part in self._parts:
                part.reshard()
            for part in self._parts[1:]:  # the root's stay, for the backward pass that follows at once
                part.set_reshard_after_forward(True, recurse=False)

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """Give a new optimizer of the module's parameters this rank's shards instead: plain tensors, for which it has its
        fast ways. Right for optimizers that look at each value by itself."""
        self._shards.clear()
        for group in optimizer.param_groups:
            group["params"] = [self._shard(parameter) for parameter in group["params"]]

    def _shard(self, parameter: Any) -> Any:
        if not isinstance(parameter, DTensor):
            return parameter
        with torch.no_grad():
            shard = nn.Parameter(parameter.to_local())
        self._shards.append((parameter, shard))
        return shard

    def step(self, optimizer: torch.optim.Optimizer, clip_grad: float | None) -> None:
        """An optimizer step on the gradients of a backward pass, which averaged those of shards over the ranks."""
        with torch.no_grad():
            for parameter, shard in self._shards:
                shard.data = parameter.to_local()
                shard.grad = None if parameter.grad is None else parameter.grad.to_local()  # type: ignore[attr-defined]
            uncut = [parameter.grad for parameter in self._uncut if parameter.grad is not None]
            if uncut:
                means = self._group.sum(torch.cat([gradient.flatten() for gradient in uncut])) / self._group.size
                for gradient, mean in zip(uncut, means.split([gradient.numel() for gradient in uncut]), strict=True):
                    gradient.copy_(mean.view_as(gradient))
            if clip_grad is not None:
                self._clip(uncut, clip_grad)
        optimizer.step()
        for _, shard in self._shards:
            shard.grad = None
        self._module.zero_grad(set_to_none=True)

    def _clip(self, uncut: list[torch.Tensor], most: float) -> None:
        """As `clip_grad_norm_` does on whole gradients."""
        shards = [shard.grad for _, shard in self._shards if shard.grad is not None]
        own = torch.stack([torch.linalg.vector_norm(gradient).square() for gradient in shards]).sum()
        same = sum(torch.linalg.vector_norm(gradient).square() for gradient in uncut)
        share = (most / ((self._group.sum(own) + same).sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in (*shards, *uncut):
            gradient.mul_(share)

    def move_to(self, other: nn.Module, share: float) -> None:
        """Move each weight and buffer by this share of its way to that of a module in like shards: a moving average."""
        with torch.no_grad():
            for own, new in zip(self._module.state_dict().values(), other.state_dict().values(), strict=True):
                here, there = (x.to_local() if isinstance(x, DTensor) else x for x in (own, new))
                if here.is_floating_point():
                    here.lerp_(there, share)
                else:
                    here.copy_(there)

    def weights(self) -> dict[str, Any]:
        """The module's state with whole tensors on the CPU, on rank 0; None for each on the others."""
        return self._gathered(self._module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The same of the optimizer's state, numbered as without shards."""
        state, wholes = optimizer.state_dict(), self._wholes(optimizer)

        def as_part(value: Any, whole: DTensor | None) -> Any:
            if whole is None or not isinstance(value, torch.Tensor) or value.shape != whole.to_local().shape:
                return value
            return DTensor.from_local(
                value, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )

        with torch.no_grad():
            parts = {i: {k: as_part(v, wholes[i]) for k, v in values.items()} for i, values in state["state"].items()}
        return self._gathered({**state, "state": parts})

    def parts_of(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors, named as in `weights`, as this module loads them."""
        own = self._module.state_dict()
        return {name: _part(tensor, own[name]) for name, tensor in weights.items()}

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Load what `optimizer_state` gave, or an optimizer of whole parameters."""
        wholes = self._wholes(optimizer)

        def own(value: Any, whole: DTensor | None) -> Any:
            if whole is None or not isinstance(value, torch.Tensor) or value.shape != whole.shape:
                return value
            part: Any = _part(value, whole)
            return part.to_local().clone()

        parts = {i: {k: own(v, wholes[i]) for k, v in values.items()} for i, values in state["state"].items()}
        optimizer.load_state_dict({**state, "state": parts})

    def _wholes(self, optimizer: torch.optim.Optimizer) -> list[DTensor | None]:
        """The sharded parameter of each that the optimizer has, in its order; None for those without shards."""
        known = {id(shard): parameter for parameter, shard in self._shards}
        return [known.get(id(own)) for group in optimizer.param_groups for own in group["params"]]

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with whole tensors for its shards, gathered one by one."""

        def whole(value: Any) -> Any:
            if isinstance(value, DTensor):
                value = value.full_tensor()
            if not isinstance(value, torch.Tensor):
                return value
            return value.detach().cpu() if self._group.is_first else None

        with torch.no_grad():
            gathered: dict[str, Any] = tree_map(whole, state)
        return gathered


def _part(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a whole tensor, if `like` is in shards."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
