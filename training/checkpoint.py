"""Checkpoints that appear whole or not at all, and bring a run back bit for bit on the same device.

A checkpoint is a folder `checkpoints/resume-STEP/`: written under a temporary name, then renamed. Older ones go only
after it stands. Rules of resuming: what was logged after the checkpoint's step is cut away; loader position, random
states, optimizers and the ledger come back as they were; the schedule is the same function of the step.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
    """Write the checkpoint of having done `step` steps. `state` must be JSON-able."""
    folder = run / "checkpoints" / f"resume-{step:09d}"
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, trainee in trainees.items():
        save_weights(trainee.module, partial / f"{name}.safetensors")
    tensors = {
        "optimizers": {name: trainee.optimizer.state_dict() for name, trainee in trainees.items()},
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(tensors, partial / "optimizers.pt")
    (partial / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
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
    for folder in (*_checkpoints(run), *(run / "checkpoints").glob(".resume-*.partial")):
        shutil.rmtree(folder)


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("resume-*"))
