"""A model that is being trained: its module, optimizer, training loss and augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import timm.optim
import torch

from ..errors import SpecError
from ..scoring.forward import autocast
from ..scoring.models import Model
from ..scoring.settings import Precision

MAX_LOGIT_SCALE = math.log(100)


class Trainee:
    """The learner, or the online model: both take the same steps on the same sub-batches.

    `lr` is the peak of the learning rate. Raises SpecError for an optimizer that timm does not know.
    """

    def __init__(
        self,
        model: Model,
        *,
        lr: float,
        optimizer: str = "adamw",
        weight_decay: float = 0.05,
        label_smoothing: float = 0.0,
        compiled: bool = False,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model.to(device)
        self.module = model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.lr, self.precision, self.compiled = lr, precision, compiled
        self.forward: Any = torch.compile(self.module) if compiled else self.module
        self.loss = model.task.training_loss(model, label_smoothing)
        if optimizer not in timm.optim.list_optimizers():
            raise SpecError(f"--optimizer is '{optimizer}', expected one of timm's: adamw, sgd, lamb, lion, ...")
        self.optimizer = timm.optim.create_optimizer_v2(self.module, opt=optimizer, lr=lr, weight_decay=weight_decay)

    def step(self, pixels_BHWC: torch.Tensor, targets: torch.Tensor, lr_share: float = 1.0) -> torch.Tensor:
        """One optimizer step on a batch on the device, at this share of the peak rate. Returns the detached loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_share * self.lr * group.get("lr_scale", 1.0)
        self.module.train()
        images = self.model.normalize(pixels_BHWC)
        with autocast(pixels_BHWC.device, self.precision):
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


def augment_views(
    views: Mapping[str, torch.Tensor], names: Iterable[str], how: str, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The views of these names, augmented. Models that see the same view see the very same augmented images."""
    done: dict[int, torch.Tensor] = {}
    found = {}
    for name in names:
        view = views[name]
        if id(view) not in done:
            done[id(view)] = augment(view, how, generator)
        found[name] = done[id(view)]
    return found


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
