"""Classifiers by timm's names. timm is imported only where it is needed, because a worker that scores pairs does not."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ModelError, did_you_mean
from .models import Model, ModelSpec, Task
from .preprocessing import merged_preprocessing

SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")
# Arguments of timm's that would bring in weights past our own settings.
WEIGHTS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
# What timm's builder takes itself, whatever the model's own constructor takes.
BUILDERS = (
    "num_classes",
    "in_chans",
    "global_pool",
    "features_only",
    "out_indices",
    "scriptable",
    "exportable",
    "no_jit",
)


def knows_timm(architecture: str) -> bool:
    """Whether this is a timm name, with or without a tag, or has one of its schemes (`hf-hub:`, `local-dir:`)."""
    import timm

    return architecture.startswith(SCHEMES) or bool(timm.is_model(architecture.partition(".")[0]))


def timm_spec(
    task: str, name: str, architecture: str, num_classes: int, arguments: dict[str, Any], base: Path | None = None
) -> ModelSpec:
    """Of a timm name, or of a folder or hub repository with timm's config.json. Raises ModelError."""
    _check_arguments(name, num_classes, arguments)
    spec = ModelSpec(name=name, task=task, architecture=architecture, arguments=arguments, num_classes=num_classes)
    if architecture.startswith(SCHEMES):
        return _from_hub(spec, base or Path.cwd())
    import timm

    from . import architectures as _registered_with_timm  # noqa: F401

    plain, _, tag = architecture.partition(".")
    if not timm.is_model(plain):
        near = timm.list_models(f"*{plain[:8]}*")[:5]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ModelError(f"unknown model '{name}': no run folder, no [models.{name}], not a timm name{hint}")
    if tag and architecture not in timm.list_pretrained(f"{plain}*"):
        tags = ", ".join(timm.list_pretrained(f"{plain}.*")[:5]) or "none"
        raise ModelError(f"unknown weights '{tag}' of timm's {plain}; it has {tags}")
    return replace(spec, weights="published") if tag else spec


def _from_hub(spec: ModelSpec, base: Path) -> ModelSpec:
    scheme, _, where = spec.architecture.partition(":")
    if not where:
        raise ModelError(f"model '{spec.name}': nothing stands behind {scheme}: in '{spec.architecture}'")
    if scheme != "local-dir":
        return replace(spec, weights="published")
    folder = base / Path(where).expanduser()
    if not (folder / "config.json").exists():
        raise ModelError(
            f"model '{spec.name}': {folder} has no config.json, which timm writes beside a model's weights"
        )
    return replace(spec, weights="published", architecture=f"local-dir:{folder}")


def _check_arguments(name: str, num_classes: int, arguments: Mapping[str, Any]) -> None:
    """Raises ModelError for arguments that cannot be, or that fight with what the data set or the entry says."""
    for argument in WEIGHTS:
        if argument in arguments:
            raise ModelError(
                f"model '{name}': arguments.{argument} is not taken; name published weights in architecture = "
                "'NAME.TAG', or your own in weights ="
            )
    classes = arguments.get("num_classes")
    if classes is not None and not (_is_count(classes) and classes >= 1):
        raise ModelError(f"model '{name}': arguments.num_classes is {classes!r}; a classifier has at least 1 class")
    if classes is not None and num_classes and classes != num_classes:
        raise ModelError(
            f"model '{name}': arguments.num_classes is {classes}, the data set has {num_classes} classes; leave it out"
        )
    channels = arguments.get("in_chans", 3)
    if not (_is_count(channels) and channels in (1, 3)):
        raise ModelError(f"model '{name}': arguments.in_chans is {channels!r}, expected 3, or 1 for grey images")
    if arguments.get("features_only"):
        raise ModelError(f"model '{name}': arguments.features_only gives feature maps instead of classes; leave it out")
    size = arguments.get("img_size", 1)
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(_is_count(side) and side >= 1 for side in sides) or len(set(sides)) > 1:
        raise ModelError(
            f"model '{name}': arguments.img_size is {size!r}, expected a whole number of pixels; images are square here"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def build_timm(task: Task, spec: ModelSpec) -> Model:
    """The model with its published weights where the spec names them, else random ones. Raises ModelError for an unknown
    argument."""
    import timm

    from . import architectures as _registered_with_timm  # noqa: F401

    arguments = {**({"num_classes": spec.num_classes} if spec.num_classes else {}), **spec.arguments}
    try:
        module = timm.create_model(spec.architecture, pretrained=spec.weights == "published", **arguments)
    except TypeError as e:
        raise _unknown_argument(spec, e) from e
    data = timm.data.resolve_model_data_config(module)
    size, crop_pct = data["input_size"][1:], data["crop_pct"]
    if "img_size" in spec.arguments:
        size, crop_pct = spec.arguments["img_size"], 1.0
    values = {
        "size": size,
        "mode": "squash" if data.get("crop_mode") == "squash" else "shortest",
        "interpolation": data["interpolation"],
        "crop_pct": crop_pct,
        "mean": data["mean"],
        "std": data["std"],
    }
    channels = spec.arguments.get("in_chans") or data["input_size"][0]
    return Model(spec, task, module, merged_preprocessing(spec.name, spec.preprocessing, values, channels))


def _unknown_argument(spec: ModelSpec, error: TypeError) -> Exception:
    """The error of a constructor, with the argument's nearest known name where it is an unknown one."""
    found = re.search(r"(?:(\w+)\.)?(\w+)\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not found or found[3] not in spec.arguments:
        return error
    makers = [
        getattr(module, found[1] or found[2], None) for module in list(sys.modules.values()) if _of_models(module)
    ]
    known = {name for maker in makers if callable(maker) for name in inspect.signature(maker).parameters}
    return ModelError(
        f"model '{spec.name}': arguments has an unknown setting '{found[3]}' for {spec.architecture}; "
        f"{did_you_mean(found[3], (known | set(BUILDERS)) - {'self', 'kwargs', 'args'})}"
    )


def _of_models(module: Any) -> bool:
    name = getattr(module, "__name__", "")
    return isinstance(name, str) and name.startswith(("timm.models.", f"{__package__}.architectures"))
