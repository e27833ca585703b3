"""Small convolutional networks for small images, registered with timm, so that `timm.create_model` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import load_pretrained, register_model
from timm.models.resnet import BasicBlock
from torch import nn


class SmallResNet(nn.Module):
    """A ResNet without timm's 7x7 stride-2 stem and pooling, which leave too little of a 32-pixel image.

    A 3x3 stem of `channels[0]`, then one stage for each further width: a stride-2 convolution and `layers[i]`
    residual blocks; global average pooling; a linear head. Input [B, 3, H, W], output logits [B, num_classes].
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        layers: Sequence[int] = (0, 1, 1),
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if len(layers) != len(channels) - 1:
            raise ValueError(f"layers has {len(layers)} entries, expected one for each of channels[1:]")
        if global_pool != "avg":
            raise ValueError(f"global_pool is '{global_pool}', expected avg")
        stages: list[nn.Module] = [_conv_norm_act(in_chans, channels[0], stride=1)]
        for i, blocks in enumerate(layers):
            stages.append(_conv_norm_act(channels[i], channels[i + 1], stride=2))
            stages += [BasicBlock(channels[i + 1], channels[i + 1]) for _ in range(blocks)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels[-1], num_classes)
        self.num_classes = num_classes
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, 32, 32),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.stages(x_BCHW).mean((2, 3)))
        return logits


def _conv_norm_act(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)
    )


@register_model  # type: ignore[untyped-decorator]
def small_resnet(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """timm entry point: `timm.create_model("small_resnet", channels=..., layers=...)`. It has no published weights; those of
    a folder (`local-dir:FOLDER`) are loaded."""
    found = kwargs.pop("pretrained_cfg", None)
    for timm_only in ("pretrained_cfg_overlay", "cache_dir", "pretrained_model_args"):
        kwargs.pop(timm_only, None)
    if found is None or isinstance(found, str):
        return SmallResNet(**kwargs)
    known = {k: v for k, v in (found if isinstance(found, dict) else found.to_dict()).items() if v is not None}
    if "num_classes" in known:  # those of the weights, as timm's own models have it
        kwargs.setdefault("num_classes", known["num_classes"])
    model = SmallResNet(**kwargs)
    model.pretrained_cfg = {**model.pretrained_cfg, **known}
    if pretrained:
        load_pretrained(model, model.pretrained_cfg, num_classes=model.num_classes)
    return model


# open_clip's configs name an image tower but give it no arguments, so each width that they use has a name.
@register_model  # type: ignore[untyped-decorator]
def small_resnet_w16(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """Half as wide as `small_resnet`: a quarter of its FLOPs."""
    made: SmallResNet = small_resnet(pretrained, **{"channels": (16, 32, 64, 128), **kwargs})
    return made


@register_model  # type: ignore[untyped-decorator]
def small_resnet_w8(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """A quarter as wide as `small_resnet`: 1/15 of its FLOPs."""
    made: SmallResNet = small_resnet(pretrained, **{"channels": (8, 16, 32, 64), **kwargs})
    return made


@register_model  # type: ignore[untyped-decorator]
def small_resnet_w8_plain(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """`small_resnet_w8` without residual blocks: 1/48 of `small_resnet`'s FLOPs."""
    made: SmallResNet = small_resnet_w8(pretrained, **{"layers": (0, 0, 0), **kwargs})
    return made
