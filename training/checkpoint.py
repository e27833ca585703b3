"""Checkpoints that appear whole or not at all, and bring a run back bit for bit on the same device.

A checkpoint is a folder `checkpoints/resume-STEP/`, on the disk before the older ones are removed. Rules of resuming:
what was logged after the checkpoint's step is cut away; loader position, random states, optimizers and the ledger come
back as they were; the schedule is the same function of the step.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..datasets.writing import remove_partials, whole_folder
from ..errors import RunError
from ..scoring.loading import load_weights, save_weights
from .trainee import Trainee


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint brings back beside the weights: the next step, and the state that `save` was given."""

    step: int
    state: dict[str, Any]


def save(
    run: Path,
    step: int,
    trainees: dict[str, Trainee],
    generators: dict[str, torch.Generator],
    state: dict[str, Any],
) -> None:
    """Write the checkpoint of having done `step` steps. `state` must be JSON-able. Raises WriteError."""
    folder = run / "checkpoints" / f"resume-{step:09d}"
    tensors = {
        "optimizers": {name: trainee.optimizer.state_dict() for name, trainee in trainees.items()},
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with whole_folder(folder) as partial:
        for name, trainee in trainees.items():
            save_weights(trainee.module, partial / f"{name}.safetensors")
            if trainee.average is not None:
                save_weights(trainee.average.module, partial / f"{name}-average.safetensors")
        with (partial / "optimizers.pt").open("wb") as file:  # by its path, torch would hide why it cannot be written
            torch.save(tensors, file)
        (partial / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    for old in _checkpoints(run):
        if old != folder:
            shutil.rmtree(old)


def load(run: Path, trainees: dict[str, Trainee], generators: dict[str, torch.Generator]) -> Resumed | None:
    """Bring back the newest checkpoint, or None where the run was killed before its first."""
    found = _checkpoints(run)
    if not found:
        return None
    folder = found[-1]
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if "position" in state:
            raise RunError(
                f"{run}: was begun by curate 0.1, which drew examples in another order; finish it with that version, or "
                "start again under another --name"
            )
        tensors = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True)
        for name, trainee in trainees.items():
            load_weights(trainee.module, str(folder / f"{name}.safetensors"))
            if trainee.average is not None:
                load_weights(trainee.average.module, str(folder / f"{name}-average.safetensors"))
            trainee.steps = state["step"]
            trainee.optimizer.load_state_dict(tensors["optimizers"][name])
        for name, generator in generators.items():
            generator.set_state(tensors["generators"][name])
    except (OSError, KeyError, ValueError, RuntimeError) as e:
        raise RunError(f"{folder}: this checkpoint does not load ({e}); delete the folder to start over") from None
    torch.set_rng_state(tensors["torch"])
    if tensors["cuda"]:
        torch.cuda.set_rng_state_all(tensors["cuda"])
    return Resumed(state.pop("step"), state)


def exists(run: Path) -> bool:
    return bool(_checkpoints(run))


def remove_all(run: Path) -> None:
    """Also what a kill in the middle of a save left."""
    for folder in _checkpoints(run):
        shutil.rmtree(folder)
    remove_partials(run / "checkpoints")


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("resume-*"))
