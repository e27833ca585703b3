"""Models by name: a run folder, an entry of curate.toml, a timm or open_clip name; and their weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ..datasets.spec import Config, load_config
from ..datasets.storage import exists, is_local, join_url, read_bytes
from ..datasets.writing import whole_file
from ..errors import ModelError
from .coarse import coarsened
from .models import Model, ModelSpec, Task
from .settings import Coarse
from .tasks import find_task

LEARNER_FILE = "checkpoints/learner.safetensors"


def find_model(name: str, *, task: str, num_classes: int = 0, config: Config | None = None) -> ModelSpec:
    """Resolve a run folder, a [models.NAME] entry, a timm name (classification) or an open_clip name (image-text).

    `ARCH:TAG` (open_clip) and `arch.tag` (timm) name published weights; `hf-hub:` and `local-dir:` work for
    open_clip. Raises ModelError, naming near misses, before anything is built or fetched.
    """
    config = config if config is not None else load_config()
    asked = find_task(task)
    if exists(join_url(name, LEARNER_FILE)) if "://" in name else Path(name, LEARNER_FILE).exists():
        return _from_run(name, asked, num_classes)
    if name in config.models:
        return _from_entry(name, config.models[name], asked, num_classes, config)
    if Path(name, "config.json").exists():
        raise ModelError(f"run '{name}' has no {LEARNER_FILE} yet; finish it with 'curate train ... --resume'")
    return asked.spec(name, name, num_classes)


def load_model(spec: ModelSpec, *, seed: int = 0, trained: bool = False) -> Model:
    """Build the module on the CPU in float32 and load its weights; random ones are drawn from `seed`.

    `trained=True` refuses random weights: the losses of a reference that was never trained are noise.
    """
    if trained and not spec.weights:
        raise ModelError(
            f"'{spec.name}' has no trained weights; name a run folder, a pretrained tag, or set weights = in its entry"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = find_task(spec.task).build(spec)
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
    except Exception as e:  # on damage, safetensors and pickle raise exceptions of their own
        raise ModelError(f"{url}: these weights do not load: {' '.join(str(e).split())[:300]}") from None


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a .safetensors file that appears whole or not at all. Raises WriteError."""
    state = {k: v.detach().contiguous().clone() for k, v in module.state_dict().items()}
    with whole_file(path) as partial:
        safetensors.torch.save_file(state, partial)


def _from_run(folder: str, task: Task, num_classes: int) -> ModelSpec:
    try:
        manifest = json.loads(read_bytes(join_url(folder, "manifest.json")))
        spec = ModelSpec(**manifest["models"]["learner"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ModelError(f"run '{folder}': its manifest.json is missing or damaged ({e})") from None
    if spec.task != task.name:
        raise ModelError(f"run '{folder}' trained a model for {spec.task}; this data set is {task.name}")
    if task.target.has_classes and num_classes and spec.num_classes != num_classes:
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
    spec = task.spec_of_entry(name, entry, num_classes, base)
    return replace(spec, weights=weights or spec.weights, preprocessing=dict(entry.get("preprocessing", {})))
