"""What two ranks do for `saving.py`, under torchrun: save a learner in shards in each way in turn.

torchrun --nproc-per-node 2 benchmarks/saving_script.py FOLDER OUT.json ROUNDS
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from curate.scoring.loading import load_model
from curate.scoring.models import ModelSpec
from curate.training import checkpoint
from curate.training.group import Group
from curate.training.trainee import Trainee
from torch.distributed.checkpoint.state_dict_saver import async_save, save

ARCHITECTURE = "vit_small_patch16_224"


def main() -> None:
    folder, out, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    group = Group.from_env()
    torch.set_num_threads(1)
    model = load_model(ModelSpec(name="m", task="classification", architecture=ARCHITECTURE, num_classes=10))
    trainee = Trainee(model, lr=1e-3, device=torch.device("cpu"), group=group, fsdp="fp32")
    trainee.join(1)
    trainee.step(torch.zeros(1, 224, 224, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    state = in_shards(trainee)
    own = dist.new_group(backend="gloo")  # an asynchronous save talks while training does
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "whole files": lambda: whole(trainee, folder, group),
        "DCP": lambda: timed("held", lambda: save(state, checkpoint_id=folder / "dcp")),
        "DCP, asynchronous": lambda: asynchronous(state, folder, own),
    }
    found: dict[str, Any] = {"seconds": {name: [] for name in sides}}
    found["weights"] = sum(parameter.numel() for parameter in model.module.parameters())
    for i in range(rounds):
        for name in list(sides) if i % 2 == 0 else reversed(sides):
            if group.is_first:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            group.agree()
            parts = group.share(sides[name]())
            found["seconds"][name].append({part: max(one[part] for one in parts) for part in parts[0]})
    if group.is_first:
        out.write_text(json.dumps(found), encoding="utf-8")
    group.close()


def timed(part: str, save: Callable[[], Any]) -> dict[str, float]:
    started = time.perf_counter()
    save()
    return {part: time.perf_counter() - started}


def whole(trainee: Trainee, folder: Path, group: Group) -> dict[str, float]:
    """As `curate train` does."""
    started = time.perf_counter()
    state = trainee.state()
    gathered = time.perf_counter() - started
    with group.together():
        if group.is_first:
            checkpoint.save(folder, 1, {"learner": state}, {}, {})
    return {"held": time.perf_counter() - started, "gathered": gathered}


def asynchronous(state: dict[str, Any], folder: Path, own: Any) -> dict[str, float]:
    started = time.perf_counter()
    saving: Any = async_save(state, checkpoint_id=folder / "dcp", process_group=own)
    held = time.perf_counter() - started
    saving.result()
    return {"held": held, "until it is there": time.perf_counter() - started}


def in_shards(trainee: Trainee) -> dict[str, Any]:
    """Weights and both of Adam's moments as DTensors."""
    weights = trainee.module.state_dict()
    return {"weights": weights} | {
        moment: {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for moment in ("exp_avg", "exp_avg_sq")
    }


if __name__ == "__main__":
    main()
