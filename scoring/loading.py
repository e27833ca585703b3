"""Models by name: a run folder, an entry of curate.toml, a timm or open_clip name; and their weights."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ..datasets.spec import Config, load_config
from ..datasets.storage import exists, is_local, join_url, read_bytes
from ..datasets.writing import whole_file
from ..errors import CurateError, ModelError, StorageError, did_you_mean, first_line
from .coarse import coarsened
from .fit import check_fit
from .models import Model, ModelSpec, Task
from .preprocessing import check_preprocessing
from .settings import Coarse
from .tasks import TASKS, find_task

LEARNER_FILE = "checkpoints/learner.safetensors"


def find_model(name: str, *, task: str, num_classes: int = 0, config: Config | None = None) -> ModelSpec:
    """Resolve a run folder, a [models.NAME] entry, a timm name (classification) or an open_clip name (image-text).

    `ARCH:TAG` (open_clip) and `arch.tag` (timm) name published weights; `hf-hub:` and `local-dir:` names work for both.
    Raises ModelError, naming near misses, before anything is built or fetched.
    """
    config = config if config is not None else load_config()
    asked = find_task(task)
    if exists(join_url(name, LEARNER_FILE)) if "://" in name else Path(name, LEARNER_FILE).exists():
        return _from_run(name, asked, num_classes)
    if name in config.models:
        return _from_entry(name, config.models[name], asked, num_classes, config)
    if Path(name, "config.json").exists():
        raise ModelError(f"run '{name}' has no {LEARNER_FILE} yet; finish it with 'curate train ... --resume'")
    with _other_tasks_named(name, name, asked):
        return asked.spec(name, name, num_classes)


@contextmanager
def _other_tasks_named(name: str, architecture: str, asked: Task) -> Iterator[None]:
    """Says of an architecture that the task does not know whether it is one of another task."""
    try:
        yield
    except ModelError:
        for other in TASKS.values():
            if other is not asked and not asked.knows(architecture) and other.knows(architecture):
                raise ModelError(
                    f"model '{name}': '{architecture}' is for {other.name}, this data set is {asked.name}; name another "
                    "model, or set the data set's task = in curate.toml"
                ) from None
        raise


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
        except CurateError:
            raise
        except ImportError as e:
            raise ModelError(
                f"model '{spec.name}' needs a library that is not installed: {first_line(e)}; install it with pip"
            ) from e
        except Exception as e:  # constructors raise anything for settings that do not go together
            raise ModelError(f"model '{spec.name}' cannot be built: {first_line(e)}") from e
    model.outputs = check_fit(model, trains=not trained)
    if spec.weights and spec.weights != "published":
        try:
            load_weights(model.module, spec.weights)
        except ModelError as e:
            raise ModelError(f"model '{spec.name}': weights = {e}") from e
    model.module.eval()
    return coarsened(model, Coarse.from_dict(spec.coarse)) if spec.coarse else model


def load_weights(
    module: nn.Module, url: str, prepared: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict
) -> None:
    """Load a .safetensors file, or a .pt with `weights_only`; `prepared` makes of its tensors what the module takes. Raises
    ModelError where tensors do not fit."""
    try:
        content = read_bytes(url)
        plain = url.split("?")[0] if "://" in url else url  # a signed URL has a query
        state = safetensors.torch.load(content) if plain.lower().endswith(".safetensors") else _unpickled(content)
        for kept in ("state_dict", "model"):  # as training programs save their checkpoints
            state = state.get(kept, state) if isinstance(state, dict) and isinstance(state.get(kept), dict) else state
        if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise ValueError(f"it holds a {type(state).__name__}, expected a state dict: tensors by name")
        state = {name.removeprefix("_orig_mod.").removeprefix("module."): tensor for name, tensor in state.items()}
        _check_names(state, module.state_dict())
        module.load_state_dict(prepared(state))
    except FileNotFoundError:
        raise ModelError(f"{url}: no such weights file") from None
    except StorageError as e:
        raise ModelError(str(e)) from None
    except pickle.UnpicklingError:
        raise ModelError(
            f"{url}: these weights do not load: damaged, or with Python objects beside the tensors, which are never loaded "
            "because they could run a program; save model.state_dict() alone, or a .safetensors file"
        ) from None
    except Exception as e:  # on damage, safetensors and torch raise exceptions of their own
        raise ModelError(f"{url}: these weights do not load: {' '.join(str(e).split())[:300]}") from None


def _check_names(given: Collection[str], wanted: Collection[str]) -> None:
    missing, foreign = [n for n in wanted if n not in given], [n for n in given if n not in wanted]
    if missing or foreign:
        parts = [f"{len(missing)} of {len(wanted)} tensors are missing, such as '{missing[0]}'"] if missing else []
        parts += [f"{len(foreign)} are not the model's, such as '{foreign[0]}'"] if foreign else []
        raise ValueError(f"{'; '.join(parts)}; they are of another architecture")


def _unpickled(content: bytes) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(content)
        file.flush()
        return torch.load(file.name, map_location="cpu", weights_only=True)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a .safetensors file that appears whole or not at all. Raises WriteError."""
    save_tensors(module.state_dict(), path)


def save_tensors(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """The same of a module's state."""
    tensors = {k: v.detach().contiguous().clone() for k, v in state.items()}
    with whole_file(path) as partial:
        safetensors.torch.save_file(tensors, partial)


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


# What may stand in [models.NAME], and as what.
ENTRY: dict[str, tuple[tuple[type, ...], str]] = {
    "architecture": ((str,), "a name"),
    "arguments": ((dict,), "a table of the constructor's arguments"),
    "config": ((str, dict), "the path of a JSON file, or a table"),
    "weights": ((str,), "a path or URL"),
    "preprocessing": ((dict,), "a table of settings"),
}


def _from_entry(name: str, entry: Mapping[str, Any], task: Task, num_classes: int, config: Config) -> ModelSpec:
    for setting, value in entry.items():
        if setting not in ENTRY:
            raise ModelError(f"model '{name}': unknown setting {setting}; {did_you_mean(setting, ENTRY)}")
        kinds, expected = ENTRY[setting]
        if not isinstance(value, kinds):
            raise ModelError(f"model '{name}': {setting} is {value!r}, expected {expected}")
    base = config.path.parent if config.path else Path.cwd()
    weights = entry.get("weights", "")
    if weights and "://" not in weights:
        weights = str(base / Path(weights).expanduser())
    preprocessing = dict(entry.get("preprocessing", {}))
    check_preprocessing(name, preprocessing)
    with _other_tasks_named(name, entry.get("architecture", ""), task):
        spec = task.spec_of_entry(name, entry, num_classes, base)
    return replace(spec, weights=weights or spec.weights, preprocessing=preprocessing)
