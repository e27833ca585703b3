"""A run's learner in the files of its own library, so that timm and open_clip load the folder without curate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..datasets.writing import write_whole
from ..errors import ModelError
from ..scoring import architectures
from ..scoring.loading import save_weights
from ..scoring.models import Model
from ..scoring.open_clip_models import SCHEMES

# What timm needs to change a classifier or a first layer, and what it says of input sizes.
KEPT = ("classifier", "first_conv", "pool_size", "fixed_input_size", "min_input_size")


def write_library_files(model: Model, folder: Path) -> tuple[str, str]:
    """Write weights and config; returns the library's name and the Python lines that load them.

    timm: config.json and model.safetensors. open_clip: open_clip_config.json and open_clip_model.safetensors.
    """
    ours = any(type(module).__module__ == architectures.__name__ for module in model.module.modules())
    register = f"import {architectures.__name__}  # registers this architecture with timm\n" if ours else ""
    if hasattr(model.module, "encode_image"):
        config = open_clip_config(model)
        save_weights(model.module, folder / "open_clip_model.safetensors")
        _write(folder / "open_clip_config.json", config)
        return "open_clip", (
            f"import open_clip\n{register}"
            'model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")\n'
            "model.eval()  # open_clip gives it in training mode\n"
            'tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")'
        )
    save_weights(model.module, folder / "model.safetensors")
    _write(folder / "config.json", timm_config(model))
    return "timm", (
        f"import timm\n{register}"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        "preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def timm_config(model: Model) -> dict[str, Any]:
    """timm's config.json of a model with its own preprocessing."""
    spec, geometry, module = model.spec, model.geometry, model.module
    of_module: dict[str, Any] = dict(getattr(module, "pretrained_cfg", None) or {})
    name = spec.architecture.partition(".")[0]
    if spec.architecture.startswith(SCHEMES):
        name = str(of_module.get("architecture") or "")
        if not name:
            raise ModelError(f"model '{spec.name}': {spec.architecture} does not say which architecture it is")
    arguments = {k: v for k, v in spec.arguments.items() if k != "num_classes"}
    classes = model.outputs or spec.num_classes
    return {
        "architecture": name,
        "num_classes": classes,
        "model_args": arguments,
        "pretrained_cfg": {
            **{key: of_module[key] for key in KEPT if of_module.get(key) is not None},
            "num_classes": classes,
            "input_size": [model.preprocessing.channels, geometry.size, geometry.size],
            "interpolation": geometry.interpolation,
            "crop_pct": geometry.crop_pct,
            "crop_mode": "squash" if geometry.mode == "squash" else "center",
            "mean": list(model.preprocessing.mean),
            "std": list(model.preprocessing.std),
            "custom_load": False,
        },
    }


def open_clip_config(model: Model) -> dict[str, Any]:
    """open_clip_config.json of a model with its own preprocessing."""
    import open_clip

    spec, geometry = model.spec, model.geometry
    architecture = spec.architecture
    if spec.open_clip_config is not None:
        config: Any = spec.open_clip_config
    elif architecture.startswith("local-dir:"):
        path = Path(architecture.partition(":")[2]) / "open_clip_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    elif architecture.startswith(SCHEMES):
        config = open_clip.factory._get_hf_config(architecture.partition(":")[2])["model_cfg"]
    else:
        config = open_clip.get_model_config(architecture.partition(":")[0])
    return {
        "model_cfg": config,
        "preprocess_cfg": {
            "mean": list(model.preprocessing.mean),
            "std": list(model.preprocessing.std),
            "interpolation": geometry.interpolation,
            "resize_mode": geometry.mode,
        },
    }
