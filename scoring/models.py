"""Models by name: timm for classifiers, open_clip for image-text, custom entries of curate.toml, or a run folder.

Each library is imported where it is needed: a worker that scores with one does not wait for the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ..datasets.decoding import INTERPOLATIONS, Geometry
from ..datasets.spec import Config, Task, load_config
from ..datasets.storage import exists, is_local, join_url, read_bytes
from ..errors import ModelError
from .coarse import Coarse, coarsened

SCHEMES = ("hf-hub:", "local-dir:")
LEARNER_FILE = "checkpoints/learner.safetensors"


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


def find_model(name: str, *, task: Task, num_classes: int = 0, config: Config | None = None) -> ModelSpec:
    """Resolve a run folder, a [models.NAME] entry, a timm name (classification) or an open_clip name (image-text).

    `ARCH:TAG` (open_clip) and `arch.tag` (timm) name published weights; `hf-hub:` and `local-dir:` work for
    open_clip. Raises ModelError, naming near misses, before anything is built or fetched.
    """
    config = config if config is not None else load_config()
    if exists(join_url(name, LEARNER_FILE)) if "://" in name else Path(name, LEARNER_FILE).exists():
        return _from_run(name, task, num_classes)
    if name in config.models:
        return _from_entry(name, config.models[name], task, num_classes, config)
    if Path(name, "config.json").exists():
        raise ModelError(f"run '{name}' has no {LEARNER_FILE} yet; finish it with 'curate train ... --resume'")
    if task == "classification":
        return _timm_spec(name, name, num_classes, {})
    return _open_clip_spec(name, name)


def load_model(spec: ModelSpec, *, seed: int = 0, trained: bool = False) -> Model:
    """Build the module on the CPU in float32 and load its weights; random ones are drawn from `seed`.

    `trained=True` refuses random weights: a reference that was never trained scores noise.
    """
    if trained and not spec.weights:
        raise ModelError(
            f"'{spec.name}' has no trained weights; name a run folder, a pretrained tag, or set weights = in its entry"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = _build_timm(spec) if spec.task == "classification" else _build_open_clip(spec)
        except (RuntimeError, ValueError, TypeError, OSError, KeyError, AssertionError) as e:
            lines = str(e).strip().splitlines()
            raise ModelError(f"model '{spec.name}' cannot be built: {lines[0] if lines else type(e).__name__}") from e
    if spec.weights and spec.weights != "published":
        load_weights(model.module, spec.weights)
    model.module.eval()
    return coarsened(model, Coarse.from_dict(spec.coarse)) if spec.coarse else model


def load_weights(module: nn.Module, url: str) -> None:
    """Load a .safetensors file, or a .pt with `weights_only`. Raises ModelError where tensors do not fit."""
    try:
        if url.endswith(".safetensors"):
            state = safetensors.torch.load(read_bytes(url))
        else:
            with tempfile.NamedTemporaryFile(suffix=".pt") as file:
                file.write(read_bytes(url))
                file.flush()
                state = torch.load(file.name, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        module.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    except FileNotFoundError:
        raise ModelError(f"{url}: no such weights file") from None
    except Exception as e:  # safetensors and pickle raise their own kinds on damage
        raise ModelError(f"{url}: these weights do not load: {' '.join(str(e).split())[:300]}") from None


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a .safetensors file that appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    safetensors.torch.save_file({k: v.detach().contiguous().clone() for k, v in module.state_dict().items()}, partial)
    os.replace(partial, path)


def _from_run(folder: str, task: Task, num_classes: int) -> ModelSpec:
    try:
        manifest = json.loads(read_bytes(join_url(folder, "manifest.json")))
        spec = ModelSpec(**manifest["models"]["learner"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ModelError(f"run '{folder}': its manifest.json is missing or damaged ({e})") from None
    if spec.task != task:
        raise ModelError(f"run '{folder}' trained a model for {spec.task}; this data set is {task}")
    if task == "classification" and num_classes and spec.num_classes != num_classes:
        raise ModelError(f"run '{folder}' knows {spec.num_classes} classes; this data set has {num_classes}")
    where = join_url(str(Path(folder).resolve()) if is_local(folder) else folder, LEARNER_FILE)
    return replace(spec, name=folder, weights=where)


def _from_entry(name: str, entry: Mapping[str, Any], task: Task, num_classes: int, config: Config) -> ModelSpec:
    known = {"architecture", "arguments", "config", "weights", "preprocessing"}
    if set(entry) - known:
        unknown = ", ".join(sorted(set(entry) - known))
        raise ModelError(f"model '{name}': unknown setting {unknown}; known are {', '.join(sorted(known))}")
    base = config.path.parent if config.path else Path.cwd()
    weights = entry.get("weights", "")
    if weights and "://" not in weights:
        weights = str(base / weights)
    preprocessing = dict(entry.get("preprocessing", {}))
    if task == "classification":
        if "architecture" not in entry:
            raise ModelError(f"model '{name}': set architecture = to a timm name")
        spec = _timm_spec(name, entry["architecture"], num_classes, dict(entry.get("arguments", {})))
    else:
        clip_config = entry.get("config")
        if isinstance(clip_config, str):
            clip_config = json.loads((base / clip_config).read_text(encoding="utf-8"))
        if clip_config is None and "architecture" not in entry:
            raise ModelError(f"model '{name}': set architecture = to an open_clip name, or config = to its JSON config")
        spec = (
            ModelSpec(name=name, task=task, architecture=name, open_clip_config=clip_config)
            if clip_config is not None
            else _open_clip_spec(name, entry["architecture"])
        )
    return replace(spec, weights=weights or spec.weights, preprocessing=preprocessing)


def _timm_spec(name: str, architecture: str, num_classes: int, arguments: dict[str, Any]) -> ModelSpec:
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
        task="classification",
        architecture=architecture,
        arguments=arguments,
        num_classes=num_classes,
        weights="published" if tag else "",
    )


def _open_clip_spec(name: str, architecture: str) -> ModelSpec:
    import open_clip

    if architecture.startswith(SCHEMES):
        return ModelSpec(name=name, task="image-text", architecture=architecture, weights="published")
    plain, _, tag = architecture.partition(":")
    if plain not in open_clip.list_models():
        near = [m for m in open_clip.list_models() if m.lower().startswith(plain.lower()[:5])][:5]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ModelError(f"unknown model '{name}': no run folder, no [models.{name}], not an open_clip name{hint}")
    known_tags = open_clip.list_pretrained_tags_by_model(plain)
    if tag and tag not in known_tags and not Path(tag).exists():
        raise ModelError(f"unknown weights '{tag}' of open_clip's {plain}; it has {', '.join(known_tags) or 'none'}")
    if tag and tag not in known_tags:
        return ModelSpec(name=name, task="image-text", architecture=plain, weights=str(Path(tag).resolve()))
    return ModelSpec(name=name, task="image-text", architecture=architecture, weights="published" if tag else "")


def _build_timm(spec: ModelSpec) -> Model:
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
    return Model(spec, module, _preprocessing(spec, values))


def _build_open_clip(spec: ModelSpec) -> Model:
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
    return Model(spec, module, _preprocessing(spec, values), tokenizer)


_TOKENIZERS: dict[Any, Any] = {}


def _shared(tokenizer: Any) -> Any:
    """One object for all of CLIP's own tokenizers that tokenize alike: learner and online model need a caption done once."""
    from open_clip.tokenizer import SimpleTokenizer

    if type(tokenizer) is not SimpleTokenizer:
        return tokenizer
    kind = (tokenizer.context_length, tokenizer.clean_fn, tokenizer.reduction_fn, tokenizer.vocab_size)
    return _TOKENIZERS.setdefault(kind, tokenizer)


def _register_config(config: dict[str, Any]) -> str:
    """Make open_clip know a JSON config under a name drawn from its content."""
    import open_clip

    text = json.dumps(config, sort_keys=True)
    name = f"curate-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.json")
            path.write_text(text, encoding="utf-8")
            open_clip.add_model_config(path)
    return name


def _preprocessing(spec: ModelSpec, values: dict[str, Any]) -> Preprocessing:
    merged = {**values, **spec.preprocessing}
    if merged["interpolation"] not in INTERPOLATIONS:
        merged["interpolation"] = "bicubic"
    if merged["mode"] not in ("shortest", "squash"):
        raise ModelError(
            f"model '{spec.name}': resize mode '{merged['mode']}' is not supported; use shortest or squash"
        )
    return Preprocessing.from_dict(merged)
