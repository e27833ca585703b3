"""Classifiers by timm's names. timm is imported only where it is needed, because a worker that scores pairs does not."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from .models import Model, ModelSpec, Task, merged_preprocessing


def timm_spec(task: str, name: str, architecture: str, num_classes: int, arguments: dict[str, Any]) -> ModelSpec:
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
    return ModelSpec(
        name=name,
        task=task,
        architecture=architecture,
        arguments=arguments,
        num_classes=num_classes,
        weights="published" if tag else "",
    )


def build_timm(task: Task, spec: ModelSpec) -> Model:
    import timm

    from . import architectures as _registered_with_timm  # noqa: F401

    module = timm.create_model(
        spec.architecture,
        pretrained=spec.weights == "published",
        **({"num_classes": spec.num_classes} if spec.num_classes else {}),
        **spec.arguments,
    )
    data = timm.data.resolve_model_data_config(module)
    if "img_size" in spec.arguments:
        data["input_size"] = (3, spec.arguments["img_size"], spec.arguments["img_size"])
        data["crop_pct"] = 1.0
    values = {
        "size": data["input_size"][-1],
        "mode": "squash" if data.get("crop_mode") == "squash" else "shortest",
        "interpolation": data["interpolation"],
        "crop_pct": data["crop_pct"],
        "mean": data["mean"],
        "std": data["std"],
    }
    return Model(spec, task, module, merged_preprocessing(spec, values))
