"""What the parts of a run are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..datasets.shards import Shard
from ..datasets.spec import Config, DatasetSpec
from ..scoring.settings import Precision
from .options import RunOptions
from .records import RunRecords
from .replay import RecordedRun
from .signals import Stop


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run's options with what they name: the data set and its shards, the run's folder, the device.

    `recorded` is the run that is replayed.
    """

    options: RunOptions
    config: Config
    dataset: DatasetSpec
    shards: Sequence[Shard]
    run: Path
    records: RunRecords
    device: torch.device
    precision: Precision
    score_precision: Precision
    stop: Stop
    recorded: RecordedRun | None = None
