"""Training on what another run chose: its stream of super-batches is drawn again, and its `selections/` say who is taken.

Nothing is scored. A step's super-batch is compared with what the other run recorded, so that another order is an error.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..errors import RunError, SpecError
from ..options import flag, options_of
from ..scoring.losses import Losses
from ..scoring.policies import POLICIES
from ..scoring.settings import REWEIGHT
from . import frozen
from .batch import SuperBatch
from .mixture import MIXED_FROM
from .options import RunOptions
from .records import SELECTION_SCHEMA, read_document, step_of

# What the order of examples follows from beside the seed, which has no default to tell it from.
STREAM = (
    *(
        "batch_size",
        "filter_ratio",
        "on_missing",
        "reference_scores",
        "refresh_scores",
        "lanes",
        "host_bytes",
        "follow",
    ),
    *("mix", "mix_last", "mix_scores"),
)


@dataclass(frozen=True)
class Record:
    """A super-batch as a run recorded it: names [B], the losses float32 [B] (None: not recorded), who was selected."""

    shards: list[str]
    keys: list[str]
    online_loss: np.ndarray | None
    reference_loss: np.ndarray | None
    selected: np.ndarray


def config_of(folder: str) -> dict[str, Any]:
    """The options of the run that --replay names. Raises RunError where the folder is no run's."""
    path = Path(folder, "config.json")
    if not path.exists():
        raise RunError(f"--replay {folder}: is no run's folder (it has no config.json); give one such as runs/NAME")
    return read_document(path)


class RecordedRun:
    """A finished or unfinished run whose choices are recorded at every step.

    Raises RunError where the folder is no run, or did not record every step.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.config = Path(folder), config_of(folder)
        self._files = sorted((self.folder / "selections").glob("*.parquet"))
        ranges = [tuple(int(step) for step in file.stem.split("-")) for file in self._files]
        self._held: tuple[Path, pa.Table, np.ndarray] | None = None
        if not ranges:
            policy = self.config.get("policy")
            raise RunError(f"--replay {folder}: recorded no selections (policy {policy}); replay a run that selects")
        every = self.config.get("selections_every") or 1
        gap = next((last for (_, last), (first, _) in pairwise(ranges) if first != last + 1), None)
        if every != 1 or ranges[0][0] != 1 or gap is not None:
            what = f"recorded every {every}th step" if every != 1 else f"lacks the selections after step {gap or 0}"
            raise RunError(f"--replay {folder}: {what}; replay a run that recorded all: --selections-every 1")
        if self.config.get("sampler") == REWEIGHT or self._pruned():
            raise RunError(
                f"--replay {folder}: its examples had weights, which are not recorded; replay a run without weights"
            )
        self.steps = ranges[-1][1]
        self._ranges = ranges

    def _pruned(self) -> bool:
        """Whether it chose by the learner's past losses: no model scored and no table was read. The name of a policy of
        one's own does not say."""
        scored = self.manifest["flops_per_step"]["online_score"] or self.manifest["flops_per_step"].get(
            "reference_score"
        )
        return not (scored or self.reads_table or self.config.get("replay"))

    @property
    def seed(self) -> int:
        """The seed of its order of examples."""
        return int(self.config["seed"])

    def settle(self, options: RunOptions) -> RunOptions:
        """The options with those that the order of examples follows from as the run had them.

        Raises SpecError where the user gave another value, or asks for more steps than were recorded.
        """
        if options.dataset != self.config["dataset"]:
            raise SpecError(
                f"--dataset is {options.dataset}, but {self.folder} was trained on {self.config['dataset']}, and its choices "
                "are replayed; leave it out"
            )
        given = options.to_dict()
        taken = {}
        for name in STREAM:
            default = options_of(RunOptions)[name].default
            theirs = self.config.get(name, default)
            if given[name] not in (default, theirs):
                raise SpecError(
                    f"{flag(name)} is {given[name]}, but {self.folder} was made with {theirs}, and its choices are replayed; "
                    "leave it out"
                )
            taken[name] = theirs
        settled = options.but(**taken)
        b = settled.optimization.batch_size
        wanted = settled.budget.steps or (settled.budget.examples or 0) // b
        if wanted > self.steps:
            raise SpecError(f"{wanted:,} steps are asked for, {self.folder} recorded {self.steps:,}; ask for fewer")
        return settled

    def step(self, step: int) -> Record:
        """What was recorded at a step, counted from 1."""
        number = next(i for i, (first, last) in enumerate(self._ranges) if first <= step <= last)
        file = self._files[number]
        if self._held is None or self._held[0] != file:
            try:
                table = pq.read_table(file, schema=SELECTION_SCHEMA)
            except (OSError, pa.ArrowException) as e:
                raise RunError(f"{file}: cannot be read ({e}); restore it") from None
            self._held = file, table, table["step"].to_numpy()
        _, table, steps = self._held
        first, end = np.searchsorted(steps, [step, step + 1])
        if first == end:
            raise RunError(f"{file}: lacks step {step:,}; restore it")
        rows = table.slice(first, end - first)
        online, reference = (
            None if rows[name].null_count else rows[name].to_numpy().astype(np.float32)
            for name in ("online_loss", "reference_loss")
        )
        selected = rows["selected"].to_numpy(zero_copy_only=False)
        return Record(rows["shard"].to_pylist(), rows["key"].to_pylist(), online, reference, selected)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What it was made of."""
        return read_document(self.folder / "manifest.json")

    @property
    def reads_table(self) -> bool:
        """Whether it read its score table: a policy that needs none leaves one that is given aside. The order of examples
        follows from the table's rows."""
        return self.manifest.get("score_table") is not None

    @property
    def reads_mixed_table(self) -> bool:
        """The same of what it mixed in."""
        return frozen.MIXED_TABLE in self.manifest["began"]

    @property
    def mix_first(self) -> int:
        """From which step on it mixed another data set in."""
        return int(self.manifest["began"]["settings"][MIXED_FROM])

    @property
    def flops_per_step(self) -> float:
        """What choosing cost it: its online model or, where its learner scored, scoring with and training the learner; and
        a reference that scored or trained during it."""
        step: dict[str, float] = self.manifest["flops_per_step"]
        learner = step["learner_train"] if step["online_score"] and not step["online_train"] else 0.0
        found = self._spent_per_step() if self._varies else None
        if found is None:
            lines = ("online_score", "online_train", "reference_score", "reference_train", "choices")
            found = sum(step.get(name, 0.0) for name in lines)
        return found + learner

    @property
    def _varies(self) -> bool:
        """Whether its steps did not all cost what was planned: the plan knows neither what actors score, nor how many losses
        a table lacks, nor whether choosing pays."""
        policy = POLICIES.get(str(self.config.get("policy")))
        return bool(self.config.get("actors") or self.config.get("on_missing") == "score" or (policy and policy.probes))

    def _spent_per_step(self) -> float | None:
        """FLOPs of choosing, without those of training the learner, on average until its newest line of metrics."""
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        newest = next((line for line in reversed(lines) if 0 < step_of(line) <= self.steps), None)
        if newest is None:
            return None
        line = json.loads(newest)
        spent = (
            line["flops"]["online_score"] + line["flops"]["online_train"] + sum(line.get("flops_in_run", {}).values())
        )
        return float(spent / line["step"])

    def frozen(self) -> dict[str, Any]:
        """What a resume compares."""
        files = [(file.name, file.stat().st_size) for file in self._files]
        return {"steps": self.steps, "selections": hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}


class ReplayScorer:
    """Says of every super-batch what the recorded run said of it: `chosen_B`, and its losses.

    Raises RunError where a super-batch is another one than was recorded.
    """

    views = ()  # the choice needs no images

    def __init__(self, run: RecordedRun) -> None:
        self.run = run

    def charge(self, batch: SuperBatch) -> None:
        """Nothing: the run that is replayed paid."""

    def score(self, batch: SuperBatch) -> Losses:
        step = batch.number
        record = self.run.step(step)
        mine = slice(None)
        if batch.division is not None:
            mine = batch.division.holder_B == batch.division.group.rank  # type: ignore[assignment]
        places = np.arange(len(record.keys))[mine]
        for own, place in enumerate(places.tolist()):
            then, now = (record.shards[place], record.keys[place]), (batch.shards[own], batch.keys[own])
            if then != now:
                raise RunError(
                    f"{self.run.folder}: at step {step:,} it drew shard '{then[0]}', key '{then[1]}', now it is shard "
                    f"'{now[0]}', key '{now[1]}'; the data set, the score table or the shards that could be read changed"
                )

        def own_rows(values: np.ndarray | None) -> torch.Tensor | None:
            return None if values is None else torch.from_numpy(np.ascontiguousarray(values[mine]))

        chosen = own_rows(record.selected.astype(np.float32))
        return Losses(own_rows(record.online_loss), own_rows(record.reference_loss), chosen_B=chosen)
