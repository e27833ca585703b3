"""`curate train` in one process, or in each of those that torchrun or srun started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..datasets.spec import load_config
from ..errors import SpecError
from ..units import Report
from .group import Group
from .options import RunOptions
from .run import train


def train_as_started(
    given: dict[str, Any],
    train_num_samples: int | None,
    epochs: int,
    *,
    config: Path | None,
    resume: bool,
    report: Report,
) -> str | None:
    """Train with options by their names. Returns the run's folder; None on every rank but the first."""
    group = Group.from_env()
    try:
        with group.together():
            if train_num_samples is not None:
                if given["examples"] is not None:
                    raise SpecError("--train-num-samples and --examples are both given; drop one")
                if epochs < 1:
                    raise SpecError(f"--epochs is {epochs}, expected at least 1")
                given = {**given, "examples": epochs * train_num_samples}
            options, known = RunOptions.of(**given), load_config(config)
        summary = train(options, config=known, resume=resume, report=report, group=group)
    finally:
        group.close()
    return f"{options.records.out.rstrip('/')}/{summary['run']}" if group.is_first else None
