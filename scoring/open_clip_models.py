"""Image-text models by open_clip's names or JSON configs. open_clip is imported where it is needed."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..datasets.storage import read_bytes
from ..errors import ModelError, StorageError, did_you_mean, first_line
from .models import Model, ModelSpec, Task
from .preprocessing import merged_preprocessing

SCHEMES = ("hf-hub:", "local-dir:")


def knows_open_clip(architecture: str) -> bool:
    """Whether this is an open_clip name, with or without a tag, or has one of its schemes (`hf-hub:`, `local-dir:`)."""
    import open_clip

    return architecture.startswith(SCHEMES) or architecture.partition(":")[0] in open_clip.list_models()


def open_clip_spec(task: str, name: str, architecture: str) -> ModelSpec:
    """The model of an open_clip name; `NAME:TAG` has published weights. Raises ModelError for an unknown name or tag."""
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


def read_config(name: str, url: str) -> dict[str, Any]:
    """A JSON config of open_clip's kind. Raises ModelError."""
    where = f"model '{name}': config = {url}"
    try:
        found = json.loads(read_bytes(url))
    except FileNotFoundError:
        raise ModelError(f"{where}: no such file; paths count from curate.toml's folder") from None
    except StorageError as e:
        raise ModelError(f"model '{name}': config = {e}") from None
    except ValueError as e:  # no JSON, or no UTF-8
        raise ModelError(f"{where}: not valid JSON ({e})") from None
    if not isinstance(found, dict):
        raise ModelError(
            f"{where}: holds a JSON {type(found).__name__}, expected an object with embed_dim and two towers"
        )
    return found


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError for settings that open_clip does not know, or that it needs and that are missing."""
    from open_clip.coca_model import CoCa, MultimodalCfg
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    if "model_cfg" in config:
        raise ModelError(
            f"model '{name}': config is a whole open_clip_config.json; name its folder, architecture = 'local-dir:FOLDER', "
            "or give what stands below model_cfg"
        )
    text = config.get("text_cfg")
    custom = config.get("custom_text") or (isinstance(text, dict) and text.get("hf_model_name"))
    if "multimodal_cfg" in config and not custom:
        raise ModelError(f"model '{name}': config has multimodal_cfg (CoCa), which needs custom_text = true")
    kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
    known = set(inspect.signature(kind).parameters) - {"cast_dtype", "output_dict"} | {"custom_text", "multimodal_cfg"}
    _refuse_unknown(name, "config", config, known)
    for setting in ("embed_dim", "vision_cfg", "text_cfg"):
        if setting not in config:
            raise ModelError(f"model '{name}': config has no {setting}, which open_clip needs")
    towers = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
    for setting, cfg in towers.items():
        tower = config.get(setting, {})
        if not isinstance(tower, dict):
            raise ModelError(f"model '{name}': config.{setting} is {tower!r}, expected a table of settings")
        _refuse_unknown(name, f"config.{setting}", tower, {field.name for field in fields(cfg)})


def _refuse_unknown(name: str, where: str, given: Mapping[str, Any], known: set[str]) -> None:
    for setting in given:
        if setting not in known:
            raise ModelError(
                f"model '{name}': {where} has an unknown setting '{setting}'; {did_you_mean(setting, known)}"
            )


def build_open_clip(task: Task, spec: ModelSpec) -> Model:
    """The model with its published weights where the spec names them, else random ones. Raises ModelError for a bad config."""
    import open_clip

    from . import architectures as _registered_with_timm  # noqa: F401

    with _without_its_log():
        architecture, _, tag = spec.architecture.partition(":")
        if spec.architecture.startswith(SCHEMES):
            architecture, tag = spec.architecture, ""
        if spec.open_clip_config is not None:
            check_config(spec.name, spec.open_clip_config)
            architecture = _register_config(spec.open_clip_config)
        module = open_clip.create_model(
            architecture, pretrained=tag or None, require_pretrained=bool(tag), pretrained_text=False
        )
        if spec.weights != "published":
            _draw_the_rest(module)
        tokenizer = _tokenizer(spec.name, architecture)
    data = open_clip.get_model_preprocess_cfg(module)
    values = {
        "size": data["size"],
        "mode": data.get("resize_mode", "shortest"),
        "interpolation": data.get("interpolation", "bicubic"),
        "mean": data.get("mean", open_clip.OPENAI_DATASET_MEAN),
        "std": data.get("std", open_clip.OPENAI_DATASET_STD),
    }
    return Model(spec, task, module, merged_preprocessing(spec.name, spec.preprocessing, values), tokenizer)


def _draw_the_rest(module: Any) -> None:
    """open_clip leaves the last layer of CoCa's decoder as it finds the memory. Drawn as it draws its other towers'."""
    import torch

    projection = getattr(getattr(module, "text_decoder", None), "text_projection", None)
    if projection is not None:
        torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)


@contextmanager
def _without_its_log() -> Iterator[None]:
    """open_clip logs a page of progress on the root logger for every model that it makes."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _tokenizer(name: str, architecture: str) -> Any:
    """Raises ModelError where a tokenizer needs a library, or files, that are not there."""
    import open_clip

    try:
        return _shared(open_clip.get_tokenizer(architecture))
    except ImportError as e:
        missing = e.name or first_line(e)
        raise ModelError(
            f"model '{name}': its tokenizer needs a library that is not installed ({missing}); run: pip install "
            "transformers sentencepiece"
        ) from e
    except Exception as e:  # transformers, tokenizers and huggingface_hub raise errors of their own
        raise ModelError(
            f"model '{name}': its tokenizer cannot be made: {first_line(e)}; text_cfg names it (hf_tokenizer_name, "
            "tokenizer_kwargs)"
        ) from e


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
