"""`curate train` in one process, or in each of those that torchrun or srun started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..datasets.landed import check_lands
from ..datasets.shards import check_there
from ..datasets.spec import Config, find_dataset, load_config
from ..errors import SpecError
from ..units import Report
from .options import RunOptions


def several_started() -> bool:
    """Whether torchrun or srun started several processes."""
    return any(os.environ.get(name, "1") not in ("", "0", "1") for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def train_as_started(
    given: dict[str, Any],
    train_num_samples: int | None,
    epochs: int,
    *,
    config: Path | None,
    resume: bool,
    report: Report,
) -> str | None:
    """Train with options by their names. Returns the run's folder; None on every rank but the first.

    Where this process is alone, a simple mistake is told before torch is imported, which takes seconds.
    """
    settled = None
    if not several_started():
        settled = options, known = _settled(given, train_num_samples, epochs, config)
        dataset = find_dataset(options.dataset, known)
        check_lands(dataset) if options.data.follow else check_there(dataset)
        if options.uses_table and options.selection.reference_scores:
            from ..scoring.tables.lookup import open_scores

            open_scores(options.selection.reference_scores)
    from .group import Group
    from .run import train

    group = Group.from_env()
    try:
        with group.together():
            options, known = settled or _settled(given, train_num_samples, epochs, config)
        summary = train(options, config=known, resume=resume, report=report, group=group)
    finally:
        group.close()
    return f"{options.records.out.rstrip('/')}/{summary['run']}" if group.is_first else None


def _settled(
    given: dict[str, Any], train_num_samples: int | None, epochs: int, config: Path | None
) -> tuple[RunOptions, Config]:
    if train_num_samples is not None:
        if given["examples"] is not None:
            raise SpecError("--train-num-samples and --examples are both given; drop one")
        if epochs < 1:
            raise SpecError(f"--epochs is {epochs}, expected at least 1")
        given = {**given, "examples": epochs * train_num_samples}
    elif epochs != 1:
        raise SpecError("--epochs counts epochs of --train-num-samples; give that too, or --examples in its place")
    if given["dataset"] is None:
        if given["replay"] is None:
            raise SpecError("train needs a data set; give --dataset, a name in curate.toml or shards")
        from .replay import config_of

        given = {**given, "dataset": config_of(given["replay"])["dataset"]}
    return RunOptions.of(**given), load_config(config)
