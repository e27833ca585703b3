"""What the parts of a run are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..datasets.shards import Shard
from ..datasets.spec import Config, DatasetSpec
from ..scoring.settings import Precision
from ..scoring.tables.lookup import ScoreTable
from .epochs import GrowingEpochs
from .group import Group
from .mixture import Mix
from .options import RunOptions
from .records import RunRecords
from .replay import RecordedRun
from .roles import Roles
from .signals import Stop


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run's options with what they name: the data set and its shards, the run's folder, the device.

    `recorded` is the run that is replayed. `began` is the manifest of a run that is resumed, empty for others; `lanes` how
    many it began with, or the user's. Where the data set is followed, `shards` are those of the first epoch, `growing` has
    those of all. `opened` is the score table, where it was opened for that or has newer losses on the way. `mix` is what is
    mixed in, `prior` the table of a second reference. `roles` says which ranks of the `group` train, and which score.
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
    group: Group
    roles: Roles
    began: Mapping[str, Any]
    lanes: int | None
    mix: Mix | None = None
    prior: ScoreTable | None = None
    growing: GrowingEpochs | None = None
    opened: ScoreTable | None = None
