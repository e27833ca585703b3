"""Checkpoints that appear whole or not at all, and bring a run back bit for bit on the same device.

A checkpoint is a folder `checkpoints/resume-STEP/`; the newest two are kept, so that a run survives one that is damaged.
A run of several ranks has one checkpoint, which rank 0 writes and all load, in a group of any size.
Rules of resuming: what was logged after the checkpoint's step is cut away; loader position, random states, optimizers and
the ledger come back as they were; the schedule is the same function of the step.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..datasets.writing import remove_partials, whole_folder, write_errors
from ..errors import DivergedError, RunError
from ..scoring.loading import load_weights, save_tensors
from ..units import Report
from .group import Group
from .trainee import Trainee, TraineeState

KEPT = 2
STATE = "state.json"
# Optimizers and random states, as torch writes them.
TENSORS = "optimizers.pt"
CHUNK = 1 << 24


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint brings back beside the weights: the next step, and what `save` was given: the state, the losses
    of super-batches that wait for their turn, and the learner's past losses."""

    step: int
    state: dict[str, Any]
    scored: Sequence[dict[str, Any]]
    past: Mapping[str, Any]


def save(
    run: Path,
    step: int,
    trainees: Mapping[str, TraineeState],
    generators: dict[str, torch.Generator],
    state: dict[str, Any],
    ranks: Sequence[dict[str, Any]] = (),
    scored: Sequence[dict[str, Any]] = (),
    past: Mapping[str, Any] | None = None,
) -> None:
    """Write the checkpoint of having done `step` steps. `state` must be JSON-able. `ranks` are the `random_state` of every
    rank, where there are several. `scored` are the losses of super-batches that wait for their turn, `past` what is remembered
    of the learner's losses, as tensors.

    Raises DivergedError where a weight is not finite, and WriteError; the older checkpoints stay then.
    """
    refuse_diverged(run, step, trainees)
    folder = run / "checkpoints" / f"resume-{step:09d}"
    gradients = {name: dict(trainee.gradients) for name, trainee in trainees.items() if trainee.gradients}
    tensors = {
        "optimizers": {name: dict(trainee.optimizer) for name, trainee in trainees.items()},
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        **random_state(alone=not ranks),
        **({"ranks": list(ranks)} if ranks else {}),
        **({"scored": list(scored)} if scored else {}),
        **({"past": dict(past)} if past else {}),
        **({"gradients": gradients} if gradients else {}),
    }
    with whole_folder(folder) as partial:
        for name, trainee in trainees.items():
            save_tensors(trainee.weights, partial / f"{name}.safetensors")
            if trainee.average is not None:
                save_tensors(trainee.average, partial / f"{name}-average.safetensors")
        with (partial / TENSORS).open("wb") as file:  # by its path, torch would hide why it cannot be written
            torch.save(tensors, file)
        sums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
        content = json.dumps({"step": step, "checksums": sums, **state})
        (partial / STATE).write_text(content, encoding="utf-8")
    # What lies behind this step was damaged, or this run would have gone on from there.
    others = [other for other in _checkpoints(run) if other != folder]
    older = [other for other in others if other < folder][-(KEPT - 1) :]
    with write_errors(folder.parent):
        for other in others:
            if other not in older:
                shutil.rmtree(other)


def random_state(alone: bool) -> dict[str, Any]:
    """Of this process's random numbers; of all GPUs, if it is `alone`, else of its own."""
    cuda: list[torch.Tensor] = []
    if torch.cuda.is_available():
        cuda = torch.cuda.get_rng_state_all() if alone else [torch.cuda.get_rng_state()]
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def refuse_diverged(run: Path, step: int, trainees: Mapping[str, TraineeState]) -> None:
    """Raises DivergedError where a weight of a model is NaN or infinite."""
    for name, trainee in trainees.items():
        for key, tensor in trainee.weights.items():
            if key in trainee.finite and not bool(torch.isfinite(tensor).all()):
                raise DivergedError(
                    f"{run}: a weight of the {name} is nan or infinite after step {step:,}; lower --lr or --online-lr"
                )


def load(
    run: Path,
    trainees: dict[str, Trainee],
    generators: dict[str, torch.Generator],
    report: Report,
    group: Group | None = None,
) -> Resumed | None:
    """Bring back the newest checkpoint, or the one before where that is damaged. None where there is none yet.

    In a group all ranks call it and load the same one. Raises RunError where there are some and none of them loads.
    """
    group = group or Group()
    with group.together():
        found = _newest(run, trainees, generators, report, group) if group.is_first else None
    folder = group.share(None if found is None else found[0])[0]
    with group.together():
        if folder is not None and not group.is_first:
            if not folder.exists():
                raise RunError(
                    f"{folder}: rank {group.rank} cannot see this checkpoint; give an --out that all nodes share"
                )
            found = folder, _load(run, folder, trainees, generators, group)
    return None if found is None else found[1]


def _newest(
    run: Path, trainees: dict[str, Trainee], generators: dict[str, torch.Generator], report: Report, group: Group
) -> tuple[Path, Resumed] | None:
    found = _checkpoints(run)[::-1]
    for folder in found:
        try:
            return folder, _load(run, folder, trainees, generators, group)
        except RunError:
            raise
        except Exception as e:  # json, pickle, zip files, safetensors and torch have errors of their own
            why = " ".join(str(e).split())[:200]
            if folder == found[-1]:
                raise RunError(
                    f"{folder}: this checkpoint does not load ({why}); delete {folder.parent} to start over"
                ) from None
            report(f"{folder}: this checkpoint does not load ({why}); the one before is taken")
    return None


def _load(
    run: Path, folder: Path, trainees: dict[str, Trainee], generators: dict[str, torch.Generator], group: Group
) -> Resumed:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if "position" in state:
        raise RunError(
            f"{run}: was begun by curate 0.1, which drew examples in another order; finish it with that version, or "
            "start again under another --name"
        )
    for name, then in state.pop("checksums", {}).items():
        if _checksum(folder / name) != then:
            raise ValueError(f"{name} is damaged")
    tensors = torch.load(folder / TENSORS, map_location="cpu", weights_only=True)
    for name, trainee in trainees.items():
        load_weights(trainee.module, str(folder / f"{name}.safetensors"), trainee.parts_of)
        if trainee.average is not None:
            load_weights(
                trainee.average.module,
                str(folder / f"{name}-average.safetensors"),
                partial(trainee.parts_of, average=True),
            )
        trainee.steps = state["step"]
        trainee.load_optimizer(tensors["optimizers"][name])
        trainee.load_gradients(tensors.get("gradients", {}).get(name, {}))
    for name, generator in generators.items():
        generator.set_state(tensors["generators"][name])
    _set_random_state(tensors, group, state["step"])
    return Resumed(state.pop("step"), state, tensors.get("scored", ()), tensors.get("past", {}))


def _set_random_state(tensors: dict[str, Any], group: Group, step: int) -> None:
    """What the rank of this number had. One that there was not draws random numbers of its own."""
    ranks = tensors.get("ranks") or [tensors]
    if group.rank >= len(ranks):
        torch.manual_seed(torch.initial_seed() + step)
        return
    own = ranks[group.rank]
    torch.set_rng_state(own["torch"])
    if own["cuda"] and torch.cuda.is_available():
        if group.size > 1:
            torch.cuda.set_rng_state(own["cuda"][0])
        else:
            torch.cuda.set_rng_state_all(own["cuda"][: torch.cuda.device_count()])


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def exists(run: Path) -> bool:
    return bool(_checkpoints(run))


def size(run: Path) -> int:
    """Bytes of all checkpoints."""
    return sum(path.stat().st_size for folder in _checkpoints(run) for path in folder.iterdir())


def remove_all(run: Path) -> None:
    """Also what a kill in the middle of a save left."""
    with write_errors(run / "checkpoints"):
        for folder in _checkpoints(run):
            shutil.rmtree(folder)
        remove_partials(run / "checkpoints")


def _checkpoints(run: Path) -> list[Path]:
    """The oldest first."""
    return sorted((run / "checkpoints").glob("resume-*"))
