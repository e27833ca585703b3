"""Image-text models by open_clip's names or JSON configs. open_clip is imported where it is needed."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .models import Model, ModelSpec, Task, merged_preprocessing

SCHEMES = ("hf-hub:", "local-dir:")


def open_clip_spec(task: str, name: str, architecture: str) -> ModelSpec:
    import open_clip

    if architecture.startswith(SCHEMES):
        return ModelSpec(name=name, task=task, architecture=architecture, weights="published")
    plain, _, tag = architecture.partition(":")
    if plain not in open_clip.list_models():
        near = [m for m in open_clip.list_models() if m.lower().startswith(plain.lower()[:5])][:5]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ModelError(f"unknown model '{name}': no run folder, no [models.{name}], not an open_clip name{hint}")
    known_tags = open_clip.list_pretrained_tags_by_model(plain)
    if tag and tag not in known_tags and not Path(tag).exists():
        raise ModelError(f"unknown weights '{tag}' of open_clip's {plain}; it has {', '.join(known_tags) or 'none'}")
    if tag and tag not in known_tags:
        return ModelSpec(name=name, task=task, architecture=plain, weights=str(Path(tag).resolve()))
    return ModelSpec(name=name, task=task, architecture=architecture, weights="published" if tag else "")


def build_open_clip(task: Task, spec: ModelSpec) -> Model:
    import open_clip

    from . import architectures as _registered_with_timm  # noqa: F401

    # open_clip logs a page of progress on the root logger for every model that it makes.
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        architecture, _, tag = spec.architecture.partition(":")
        if spec.architecture.startswith(SCHEMES):
            architecture, tag = spec.architecture, ""
        if spec.open_clip_config is not None:
            architecture = _register_config(spec.open_clip_config)
        module = open_clip.create_model(
            architecture, pretrained=tag or None, require_pretrained=bool(tag), pretrained_text=False
        )
        tokenizer = _shared(open_clip.get_tokenizer(architecture))
    finally:
        logging.disable(previous)
    data = open_clip.get_model_preprocess_cfg(module)
    size = data["size"] if isinstance(data["size"], int) else data["size"][0]
    values = {
        "size": size,
        "mode": data.get("resize_mode", "shortest"),
        "interpolation": data.get("interpolation", "bicubic"),
        "mean": data.get("mean", open_clip.OPENAI_DATASET_MEAN),
        "std": data.get("std", open_clip.OPENAI_DATASET_STD),
    }
    return Model(spec, task, module, merged_preprocessing(spec, values), tokenizer)


_TOKENIZERS: dict[Any, Any] = {}


def _shared(tokenizer: Any) -> Any:
    """One object for all of CLIP's own tokenizers that tokenize alike, so that a caption is tokenized once for all models."""
    from open_clip.tokenizer import SimpleTokenizer

    if type(tokenizer) is not SimpleTokenizer:
        return tokenizer
    kind = (tokenizer.context_length, tokenizer.clean_fn, tokenizer.reduction_fn, tokenizer.vocab_size)
    return _TOKENIZERS.setdefault(kind, tokenizer)


def _register_config(config: dict[str, Any]) -> str:
    """Register a JSON config with open_clip, under a name made from its content."""
    import open_clip

    text = json.dumps(config, sort_keys=True)
    name = f"curate-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.json")
            path.write_text(text, encoding="utf-8")
            open_clip.add_model_config(path)
    return name
