"""A run's folder: found or made, locked, and compared with what the run began with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..datasets.writing import lock, remove_partials
from ..errors import BusyError, RunError
from ..scoring.forward import best_precision
from ..scoring.settings import Precision
from ..units import Report
from . import frozen
from .options import RunOptions
from .records import read_document

# What a run that was killed before it wrote its config.json may have left.
BEFORE_CONFIG = frozenset(
    {".lock", "checkpoints", "selections", "log.txt", "manifest.json", "shards.json", "scores.json"}
)
# Options that may differ when a run is resumed: they change what is written or how fast, never the weights.
FREE_TO_CHANGE = frozenset(
    {
        "log_every",
        "report_to",
        "checkpoint_every",
        "evaluate_every",
        "keep_every",
        "cache_bytes",
        "decode_processes",
        "fsdp",
        "evaluate",
        "out",
        "name",
        "max_failures",
        "max_bad_shards",
        "trust_table",
        # Where a table is; what it holds is compared as the run's beginning.
        "reference_scores",
        "prior_scores",
        "mix_scores",
    }
)
# A selection's row in compressed Parquet (measured: 21 bytes, 35 with keys of 32 hexadecimal digits); what all may take.
SELECTION_BYTES, SELECTIONS_BUDGET = 36, 1_000_000_000
LOCKS: dict[str, Any] = {}


def default_name(options: RunOptions) -> str:
    """`dataset-policy-learner-seed0`, of characters that any file system takes."""
    parts = [
        Path(options.dataset).name,
        options.selection.chosen_policy.name,
        Path(options.learner).name,
        f"seed{options.seed}",
    ]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-") for part in parts)


def open_folder(run: Path, options: RunOptions, resume: bool, report: Report) -> dict[str, Any] | None:
    """Make the run's folder, or find it as an earlier call left it. Returns the summary of a finished run."""
    if (run / "config.json").exists():
        if not resume:
            raise RunError(f"{run}: this run exists; --resume continues it, --name makes another")
        refuse_other_options(run, options)
        if (run / "summary.json").exists():
            return read_document(run / "summary.json")
    elif run.is_dir():
        # A refused run is removed again, so it must not start where somebody else's files are.
        foreign = sorted({path.name for path in run.iterdir()} - BEFORE_CONFIG)
        if foreign:
            raise RunError(f"{run}: holds '{foreign[0]}' and is no run folder; choose another --name or --out")
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        _lock(run, report)
        remove_partials(run)
    except OSError as e:
        raise RunError(f"{run}: cannot be written ({e.strerror or e}); choose another --out") from None
    return None


def refuse_other_options(run: Path, options: RunOptions) -> None:
    """Raises RunError where a run was begun with other options than these. Lanes, precision and how often selections are
    recorded are settled when a run begins: who does not name them gets what it began with."""
    before = read_document(run / "config.json")
    free = set(FREE_TO_CHANGE)
    for name in ("actors", "scorers"):  # how many there are is free, but not whether
        then, now = before.get(name) or 0, getattr(options.asynchronous, name)
        if bool(then) != bool(now):
            other = "give at least 1" if then else "leave it out"
            raise RunError(f"{run}: was started with --{name} {then}, now it is {now}; {other}, or take another --name")
        free.add(name)
    if options.data.lanes is None:
        free.add("lanes")
    if options.records.selections_every is None:
        free.add("selections_every")
    if before.get("precision") is None:
        before["precision"] = began_with(run).get("precision")
        if options.optimization.precision is None or before["precision"] is None:
            free.add("precision")
    changed = options.changed_since(before, free)
    if changed:
        raise RunError(f"{run}: was started with {changed[0]}; use the same, or another --name")


def began_with(run: Path) -> dict[str, Any]:
    """The manifest of a run that began: that has a config.json, which is written after it. Empty for others."""
    path = run / "manifest.json"
    return read_document(path) if path.exists() and (run / "config.json").exists() else {}


def settled_lanes(run: Path, options: RunOptions) -> int | None:
    """The lanes that the run began with; else the user's."""
    config = run / "config.json"
    return read_document(config).get("lanes") if config.exists() else options.data.lanes


def settled_precisions(run: Path, options: RunOptions, device: torch.device) -> tuple[Precision, Precision]:
    """(to train in, to score super-batches in): the user's, else what the run began with, else what the hardware gains
    by. A run of a version that scored as the table was made goes on so."""
    manifest = began_with(run)
    began = manifest.get("began") or {}
    scored = (began.get("settings") or {}).get("score precision") or (began.get("score_table") or {}).get("precision")
    precision: Precision = options.optimization.precision or manifest.get("precision") or best_precision(device)
    return precision, options.optimization.score_precision or scored or precision


def settled_selections(run: Path, options: RunOptions, steps: int) -> int:
    """How many steps lie between two records of a selection: what the run began with, else the user's, else as few as
    keep all records below SELECTIONS_BUDGET."""
    config = run / "config.json"
    began = read_document(config).get("selections_every") if config.exists() else None
    asked = options.records.selections_every or began
    rows = steps * options.super_batch_size * options.selection.selects
    return int(asked or max(1, math.ceil(rows * SELECTION_BYTES / SELECTIONS_BUDGET)))


def refuse_other_beginning(run: Path, now: Mapping[str, Any], report: Report) -> None:
    """Raises RunError where a run that began would go on with something else; `now` is the manifest that it would get."""
    before = began_with(run)
    changed = frozen.refused(before, now)
    if changed:
        raise RunError(f"{run}: began with {changed[0]}; restore what it began with, or begin another run: --name")
    for difference in frozen.said(before, now):
        report(f"{run}: began with {difference}; the last bits may differ from a run without a break")


def _lock(run: Path, report: Report) -> None:
    """Hold the run's folder until `train` ends; the lock dies with a killed process too."""
    file = (run / ".lock").open("a+", encoding="utf-8")
    try:
        unlocked = lock(file)
    except BlockingIOError:
        file.close()
        raise BusyError(
            f"{run}: another process is training into this folder; wait for it or use another --name"
        ) from None
    if unlocked:
        report(f"{run}: {unlocked}; let no other process train into this folder")
    LOCKS[str(run)] = file
