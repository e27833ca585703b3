"""What a model is: how it is specified, how its images are prepared, and the built module with both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from ..datasets.decoding import INTERPOLATIONS, Geometry
from ..datasets.spec import Task
from ..errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Geometry (done once, when decoding) and normalisation (done on the device)."""

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**self.geometry.to_dict(), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        known = {field.name for field in fields(Geometry)}
        geometry = {name: value for name, value in values.items() if name in known}
        return cls(geometry=Geometry(**geometry), mean=tuple(values["mean"]), std=tuple(values["std"]))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a model again; JSON-able. `weights` says where they come from ("" is random), `coarse`
    how it scores (see coarse.py)."""

    name: str
    task: Task
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    open_clip_config: dict[str, Any] | None = None
    num_classes: int = 0
    weights: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    coarse: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Model:
    """A built model: `module`, its `preprocessing` and, for image-text, its `tokenize` (captions -> int64 [B, L])."""

    def __init__(self, spec: ModelSpec, module: nn.Module, preprocessing: Preprocessing, tokenizer: Any = None) -> None:
        self.spec = spec
        self.module = module
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self._mean = torch.tensor(preprocessing.mean) * 255.0
        self._std = torch.tensor(preprocessing.std) * 255.0

    @property
    def geometry(self) -> Geometry:
        return self.preprocessing.geometry

    def tokenize(self, captions: list[str]) -> torch.Tensor:
        tokens: torch.Tensor = self.tokenizer(captions)
        return tokens

    def to(self, device: torch.device | str) -> Model:
        self.module.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def normalize(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] to float32 [B, 3, H, W] (channels last in memory) with this model's mean and std."""
        B, H, W, C = pixels_BHWC.shape
        # A whole row at a time, and in place: an innermost dimension of three channels is four times as slow on CPUs.
        rows = pixels_BHWC.reshape(B, H, W * C).to(torch.float32, copy=True)
        rows.sub_(self._mean.repeat(W)).div_(self._std.repeat(W))
        return rows.view(B, H, W, C).permute(0, 3, 1, 2)

    def fingerprint(self) -> str:
        """64 hex digits of weights, architecture and preprocessing; the same whichever name or path it came by."""
        architecture = {
            "architecture": self.spec.architecture if self.spec.open_clip_config is None else "",
            "arguments": self.spec.arguments,
            "open_clip_config": self.spec.open_clip_config,
            "preprocessing": self.preprocessing.to_dict(),
            **({"coarse": self.spec.coarse} if self.spec.coarse else {}),
        }
        digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def merged_preprocessing(spec: ModelSpec, values: dict[str, Any]) -> Preprocessing:
    """What a library says of a model's preprocessing, with what the user set over it. Raises ModelError."""
    merged = {**values, **spec.preprocessing}
    if merged["interpolation"] not in INTERPOLATIONS:
        merged["interpolation"] = "bicubic"
    if merged["mode"] not in ("shortest", "squash"):
        raise ModelError(
            f"model '{spec.name}': resize mode '{merged['mode']}' is not supported; use shortest or squash"
        )
    return Preprocessing.from_dict(merged)
