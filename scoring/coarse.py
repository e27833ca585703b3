"""Scoring more cheaply than training: the same weights on fewer pixels, or on some of the patches.

Flexi-JEST (arXiv 2406.17711, section 4.3) scores at a coarser resolution than the learner trains at. Both losses of a
learnability must be computed in the same way, so a coarse reference is another reference, with its own fingerprint and
table.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from ..errors import ModelError, first_line
from .fit import with_shared_tensors
from .forward import score_blank
from .models import Model
from .settings import Coarse


def coarsened(model: Model, coarse: Coarse) -> Model:
    """`model` as it scores under `coarse`. Its weights are shared, not copied: training one trains the other.

    Position embeddings are resampled at every pass. Which patches are kept depends on their number alone, so two models
    with equally many patches keep the same ones. Convolutional towers take any size without a change.
    Raises ModelError where an image tower cannot do this.
    """
    module = with_shared_tensors(model.module)
    full = model.geometry.size
    size = coarse.size or full
    preprocessing = replace(model.preprocessing, geometry=replace(model.geometry, size=size))
    made = type(model)(replace(model.spec, coarse=coarse.to_dict()), model.task, module, preprocessing, model.tokenizer)
    made.outputs = model.outputs
    made.to(next(module.parameters()).device)
    try:
        if size != full:
            _take_size(module, size, full)
        if coarse.patch_dropout and not _drop_patches(module, coarse.patch_dropout):
            raise ValueError("its image tower has no patches to drop")
        score_blank(made)
    except (ValueError, RuntimeError, AssertionError, TypeError) as e:
        raise ModelError(f"model '{model.spec.name}' cannot score with {coarse}: {first_line(e)}") from None
    return made


class KeepSomePatches(nn.Module):
    """Tokens [B, prefix + N, D] to [B, prefix + kept, D]: the first `prefix`, and a fixed random choice of the others."""

    def __init__(self, dropped: float, prefix: int) -> None:
        super().__init__()
        self.dropped, self.prefix = dropped, prefix

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        N = x_BLD.shape[1] - self.prefix
        order_N = torch.randperm(N, generator=torch.Generator().manual_seed(N))
        kept = order_N[: max(1, round(N * (1 - self.dropped)))].sort().values + self.prefix
        return x_BLD[:, torch.cat([torch.arange(self.prefix), kept]).to(x_BLD.device)]


class _Resample(nn.Module):
    """Position embeddings [1 + old^2, D] to [1 + new^2, D], bicubic, as timm and open_clip do it once on loading."""

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.old, self.new = old, new

    def forward(self, positions_LD: torch.Tensor) -> torch.Tensor:
        first_1D, grid_ND = positions_LD[:1], positions_LD[1:]
        grid_1DHW = grid_ND.reshape(1, self.old, self.old, -1).permute(0, 3, 1, 2).float()
        grid_1DHW = F.interpolate(grid_1DHW, size=(self.new, self.new), mode="bicubic", antialias=True)
        resampled_ND = grid_1DHW.permute(0, 2, 3, 1).reshape(self.new**2, -1)
        return torch.cat([first_1D, resampled_ND.to(positions_LD.dtype)])


def _take_size(module: nn.Module, size: int, full: int) -> None:
    from timm.layers import Format
    from timm.models import VisionTransformer

    for part in list(module.modules()):
        if isinstance(part, VisionTransformer):
            # The constructor's dynamic_img_size=True would set the same.
            part.dynamic_img_size = True
            part.patch_embed.strict_img_size, part.patch_embed.flatten = False, False
            part.patch_embed.output_fmt = Format.NHWC
        elif isinstance(part, _open_clip_parts()):
            positions: Any = part.positional_embedding
            old = math.isqrt(len(positions) - 1)
            if old * size % full:
                raise ValueError(f"{size} px is no whole number of its {full // old} px patches")
            register_parametrization(part, "positional_embedding", _Resample(old, old * size // full), unsafe=True)


def _drop_patches(module: nn.Module, share: float) -> bool:
    """Add the dropping to every vision transformer. Returns whether there was one."""
    from timm.models import VisionTransformer

    found = False
    for part in list(module.modules()):
        if isinstance(part, VisionTransformer):
            part.patch_drop, found = KeepSomePatches(share, part.num_prefix_tokens), True
        elif isinstance(part, _open_clip_parts()) and hasattr(part, "patch_dropout"):
            part.patch_dropout, found = KeepSomePatches(share, 1), True
    return found


def _open_clip_parts() -> tuple[type, ...]:
    """The modules of open_clip's own towers that have learned positions in a grid, after one token."""
    from open_clip.modified_resnet import AttentionPool2d
    from open_clip.transformer import VisionTransformer

    return VisionTransformer, AttentionPool2d
