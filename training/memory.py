"""The memory that a run will take, measured before step 1 on tensors that have a shape and a device but no storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..datasets.decoding import Geometry, View
from ..errors import ModelError, SpecError, first_line
from ..scoring.joint import BLOCK
from ..scoring.models import Model
from ..scoring.settings import Precision
from ..units import Report
from .peaks import optimizer_bytes, parameter_bytes, scoring_peak, training_peak
from .trainee import Trainee

# Nothing is measured where even so many float32 values for each value of an image would take a tenth of the memory or less.
MOST_ACTIVATIONS, UNMEASURED_SHARE = 1000, 0.1
# Compiled code keeps less for the backward pass. How much less is not known before, so less than this share is not refused.
COMPILED_SHARE = 0.5
# Super-batches on the host at one time: two that were read ahead, one in the making, one in use.
SUPER_BATCHES = 4
# Matrices [B, BLOCK] of float32 that a joint choice has at one time.
JOINT_BLOCKS = 6


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run computes at a step. `scoring` are the models that score the super-batch; `joint` says that the choice
    compares all pairs. Of `views` those made `ahead` are made of the whole super-batch. `grad_checkpointing` is the
    learner's. So many super-batches `wait`, scored, for their turn. A `reference` trains on super-batches, where one does, and a
    `twin` as the online model does."""

    learner: Trainee
    online: Trainee | None
    scoring: Sequence[Model]
    views: Iterable[View]
    ahead: Iterable[View]
    sub_batch: int
    super_batch: int
    micro_batch: int
    accumulate: int
    grad_checkpointing: bool
    score_precision: Precision
    device: torch.device
    joint: bool = False
    wait: int = 0
    reference: Trainee | None = None
    twin: Trainee | None = None

    @property
    def shards(self) -> int:
        """How many ranks hold a part of the learner's weights each; 1 where all hold all."""
        return self.learner.group.size if self.learner.fsdp else 1

    @property
    def trainees(self) -> dict[str, Trainee]:
        found = {"learner": self.learner, "online model": self.online, "reference": self.reference, "twin": self.twin}
        return {name: trainee for name, trainee in found.items() if trainee}

    @property
    def super_batches(self) -> int:
        """On the host at one time."""
        return SUPER_BATCHES + self.wait

    @property
    def image_bytes(self) -> int:
        """Of one example in all views that differ; what a user's function makes is of unknown size."""
        return _image_bytes(self.views)

    @property
    def image_bytes_ahead(self) -> int:
        """Of one example in the views of the whole super-batch that differ."""
        return _image_bytes(self.ahead)


@dataclass(frozen=True)
class Memory:
    """Bytes. `held` is on the device all the time, each of `peaks` at its time, `host` beside the shards and the cache."""

    held: dict[str, int]
    peaks: dict[str, int]
    host: int

    @property
    def device(self) -> int:
        return sum(self.held.values()) + max(self.peaks.values())

    @property
    def least(self) -> int:
        """If compiled code keeps as little as we can imagine."""
        return sum(self.held.values()) + round(COMPILED_SHARE * max(self.peaks.values()))

    def __str__(self) -> str:
        peak = max(self.peaks, key=lambda name: self.peaks[name])
        parts = [f"{name} {_gb(size)}" for name, size in self.held.items() if size]
        return f"{_gb(self.device)} ({', '.join([*parts, f'{peak} {_gb(self.peaks[peak])}'])})"


def check_memory(needs: Needs, log: Report) -> Memory | None:
    """Log what the run will take. Raises SpecError where the device has less, with the options that would help.

    None where a model cannot be measured without its values, and where so little is needed that nobody asks.
    """
    room = available(needs)
    if room is None or crude(needs) < UNMEASURED_SHARE * room:
        return None
    try:
        found = measure(needs)
    except (RuntimeError, NotImplementedError, TypeError) as e:
        log(f"memory: cannot be estimated ({first_line(e)})")
        return None
    log(
        f"memory: about {found} on {needs.device}, which has {_gb(room)}; {_gb(found.host)} of super-batches on the host"
    )
    compiled = needs.learner.compiled
    if (found.least if compiled else found.device) > room:
        raise SpecError(
            f"training needs about {found} on {needs.device}, which has {_gb(room)}; {_help(needs, found.held, room)}"
        )
    if found.device > room:
        log("memory: this fits only if compiled code needs less than that; if it ends out of memory, --accumulate 2")
    return found


def measure(needs: Needs) -> Memory:
    """Raises what a model raises that cannot run without its values."""
    own = needs.device.type != "cpu"
    images, B, b = needs.image_bytes, needs.super_batch, needs.sub_batch
    drawn = B * needs.image_bytes_ahead
    models = {id(m.module): m for m in (*(t.model for t in needs.trainees.values()), *needs.scoring)}
    tensors = {id(t): t for m in models.values() for t in (*m.module.parameters(), *m.module.buffers())}
    optimizers = {name: optimizer_bytes(trainee, needs.device) for name, trainee in needs.trainees.items()}
    whole, shards = parameter_bytes(needs.learner.module), needs.shards
    held = {
        "parameters": sum(t.nbytes for t in tensors.values()) - whole + whole // shards,
        "optimizer": sum(state // (shards if name == "learner" else 1) for name, (state, _) in optimizers.items()),
        "average": sum(parameter_bytes(t.module) // shards for t in needs.trainees.values() if t.average is not None),
        "gradients of the reference": parameter_bytes(needs.reference.module) if needs.reference else 0,
        # The sub-batch, the same augmented, and the super-batch: on a CPU all that are held at a time, on a GPU the next one
        # too, which is copied there meanwhile. Where a sub-batch is all that is copied, it is the next one of these.
        "images": (2 + (own and not drawn)) * b * images + (2 + needs.wait if own else needs.super_batches) * drawn,
    }
    peaks = {}
    for name, trainee in needs.trainees.items():
        again = needs.grad_checkpointing if trainee is needs.learner else trainee.grad_checkpointing
        peaks[f"training the {name}"] = max(
            training_peak(trainee, B if trainee is needs.reference else b, needs.accumulate, again, needs.device),
            parameter_bytes(trainee.module) + optimizers[name][1],  # gradients, and what the optimizer makes of them
        )
    for model in needs.scoring:
        size = min(B, needs.micro_batch)
        peak = scoring_peak(model, size, needs.score_precision, needs.device)
        if shards > 1 and model.module is needs.learner.module:
            peak += whole  # gathered; a training step gathers less than the gradients that its peak counts
        # The loop holds the super-batch before until this one is chosen from.
        peaks["scoring"] = max(peaks.get("scoring", 0), peak + own * drawn)
    if needs.joint:
        peaks["choosing"] = JOINT_BLOCKS * B * BLOCK * 4
    return Memory(held, peaks, (needs.super_batches + own) * drawn)


def available(needs: Needs) -> int | None:
    """Bytes that this process can have on the device, with what the parameters take already; None where nobody says."""
    if needs.device.type == "cuda":
        return int(torch.cuda.mem_get_info(needs.device)[0] + torch.cuda.memory_reserved(needs.device))
    free = host_available()
    if free is None:
        return None
    return free + sum(parameter_bytes(t.module) for t in needs.trainees.values())


def host_available() -> int | None:
    """Bytes that the system, or this process's control group, can still give; None where neither says."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        if most.isdigit():
            found.append(int(most) - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def crude(needs: Needs) -> int:
    """Bytes that a run is certain not to exceed, from its batch and its parameters alone."""
    parameters = sum(parameter_bytes(t.module) for t in needs.trainees.values())
    trained = needs.super_batch if needs.reference else needs.sub_batch
    at_a_time = -(-trained // needs.accumulate) + min(needs.super_batch, needs.micro_batch)
    compared = 64 * needs.sub_batch**2 + 4 * JOINT_BLOCKS * BLOCK * needs.super_batch * needs.joint
    return (
        8 * parameters
        + compared
        + needs.image_bytes * 4 * MOST_ACTIVATIONS * at_a_time
        + needs.image_bytes_ahead * needs.super_batches * needs.super_batch
    )


def _help(needs: Needs, held: dict[str, int], room: int) -> str:
    """What to do about it: the least of each kind of change with which the run fits, and what it would take then."""
    found, fewer = [], _fewer_wait(needs, room)
    if fewer is not None:
        told = f"--score-ahead {fewer}" if fewer else "no --score-ahead"
        found.append(f"{told} fits: {_gb(measure(replace(needs, wait=fewer)).device)}")
    for kind in _changes(needs) if sum(held.values()) < room else ():
        for told, change in kind:
            try:
                memory = measure(replace(needs, **change))
            except ModelError:  # it has no checkpointing
                break
            if memory.device <= room:
                found.append(f"{told} fits: {_gb(memory.device)}")
                break
        if len(found) == 2:
            break
    return "; ".join(found) or (
        f"lower {'--score-ahead and ' if needs.wait else ''}--batch-size, or take a smaller model"
    )


def _fewer_wait(needs: Needs, room: int) -> int | None:
    """The most super-batches that may wait, scored, for the run to fit; None where none helps, or none waits."""
    each = needs.super_batch * needs.image_bytes_ahead
    if not needs.wait or not each:
        return None
    left = room - measure(replace(needs, wait=0)).device
    return min(needs.wait, left // each) if left >= 0 else None


def _changes(needs: Needs) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Kinds of change, from what costs nothing to what costs most; of each kind the least comes first."""
    sizes = [needs.micro_batch // 4**i for i in (1, 2, 3)] if needs.scoring else []
    parts = [needs.accumulate * 2**i for i in range(1, 10) if needs.accumulate * 2**i <= needs.sub_batch]
    yield [(f"--micro-batch {n}", {"micro_batch": n}) for n in sizes if n]
    yield [(f"--accumulate {n}", {"accumulate": n}) for n in parts]
    if not needs.grad_checkpointing:
        again = {"grad_checkpointing": True}
        yield [("--grad-checkpointing", again)]
        yield [(f"--grad-checkpointing --accumulate {n}", {**again, "accumulate": n}) for n in parts]


def _image_bytes(views: Iterable[View]) -> int:
    return sum(3 * size * size for size in {v.size for v in views if isinstance(v, Geometry)})


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
