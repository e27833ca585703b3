"""A model that is being trained: its module, optimizer, training loss and augmentation."""

from __future__ import annotations

import math
from typing import Any

import timm.optim
import torch

from ..errors import SpecError
from ..scoring.flops import Flops, train_flops
from ..scoring.forward import autocast
from ..scoring.models import Model
from ..scoring.settings import Precision
from .options import RunOptions

MAX_LOGIT_SCALE = math.log(100)


class Trainee:
    """The learner, or the online model: both take the same steps on the same sub-batches."""

    def __init__(self, model: Model, options: RunOptions, lr: float, device: torch.device) -> None:
        self.model = model.to(device)
        self.module = model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.lr = lr
        compiled = options.optimization.compile if options.optimization.compile is not None else device.type == "cuda"
        self.compiled = compiled
        self.forward: Any = torch.compile(self.module) if compiled else self.module
        self.loss = model.task.training_loss(model, options.optimization.label_smoothing)
        if options.optimization.optimizer not in timm.optim.list_optimizers():
            raise SpecError(
                f"--optimizer is '{options.optimization.optimizer}', expected one of timm's: adamw, sgd, lamb, lion, ..."
            )
        self.optimizer = timm.optim.create_optimizer_v2(
            self.module, opt=options.optimization.optimizer, lr=lr, weight_decay=options.optimization.weight_decay
        )

    def step(self, pixels_BHWC: torch.Tensor, targets: torch.Tensor, lr: float, precision: Precision) -> torch.Tensor:
        """One optimizer step on a batch already on the device. Returns the detached training loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.module.train()
        images = self.model.normalize(pixels_BHWC)
        with autocast(pixels_BHWC.device, precision):
            output = self.model.task.forward(self.forward, images, targets)
        loss = self.loss(output, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        scale = getattr(self.module, "logit_scale", None)
        if scale is not None:
            with torch.no_grad():
                scale.clamp_(0, MAX_LOGIT_SCALE)
        return loss.detach()

    def train_flops(self, batch_size: int) -> Flops:
        return train_flops(self.model, self.loss, batch_size)


def augment(pixels_BHWC: torch.Tensor, how: str, generator: torch.Generator) -> torch.Tensor:
    """Random horizontal flips, and crops after reflecting an eighth of the side; on the device, in uint8.

    `generator` lives on the CPU, so that every device draws the same.
    """
    if how == "none":
        return pixels_BHWC
    B, size = pixels_BHWC.shape[:2]
    device = pixels_BHWC.device
    columns_BW = torch.arange(size).expand(B, size)
    rows_BH = columns_BW
    if how == "crop-flip":
        margin = max(1, size // 8)
        rows_BH = reflect(rows_BH + torch.randint(-margin, margin + 1, (B, 1), generator=generator), size)
        columns_BW = reflect(columns_BW + torch.randint(-margin, margin + 1, (B, 1), generator=generator), size)
    flip_B = torch.rand(B, 1, generator=generator) < 0.5
    columns_BW = torch.where(flip_B, columns_BW.flip(1), columns_BW)
    index_B = torch.arange(B, device=device)[:, None, None]
    return pixels_BHWC[index_B, rows_BH.to(device)[:, :, None], columns_BW.to(device)[:, None, :]]


def reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices past an edge come back from it: -1 is 1, `size` is size - 2."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
