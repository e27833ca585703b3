"""Mixtures: a share of every super-batch comes from another data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets.readers import Failure
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..errors import SpecError
from ..scoring.tables.lookup import ScoreTable
from .division import Division
from .drawing import Drawing
from .group import Group
from .loading import Row
from .positions import MIX, PREFIX

# The name under which a run's manifest says from which step on it mixes.
MIXED_FROM = "mixed in from step"


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Another data set, from which `share` of every super-batch is drawn, from the super-batch numbered `first` on (from 1).

    Both data sets are drawn uniformly, each in its own epochs: a small one comes round more often. `data` and `shards` are
    what SuperBatches takes. `scores` is its own score table, by the same reference; None where nothing needs its losses.
    Raises SpecError for a share or a number that cannot be.
    """

    data: str | DatasetSpec
    share: float
    first: int = 1
    scores: str | ScoreTable | None = None
    shards: Sequence[Shard] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SpecError(f"the share of a mixture is {self.share:g}, expected above 0 and up to 1, such as 0.25")
        if self.first < 1:
            raise SpecError(f"the first super-batch of a mixture is {self.first}; they count from 1")

    def rows(self, size: int) -> int:
        """How many of `size` rows it gives. Raises SpecError where it is not even one."""
        found = round(self.share * size)
        if not found:
            raise SpecError(
                f"a share of {self.share:.3g} of {size:,} examples is less than one example; raise the share of --mix"
            )
        return found

    def counts(self, drawn: int, size: int) -> tuple[int, int]:
        """How many rows of the super-batch after `drawn` others come from (the data set, the one that is mixed in)."""
        mixed = self.rows(size) if drawn + 1 >= self.first else 0
        return size - mixed, mixed


def prefix_of(dataset: DatasetSpec) -> str:
    """What stands before the names of its shards, since both data sets may have shards of one name."""
    return f"{dataset.name}/"


def refuse_unlike(one: DatasetSpec, other: DatasetSpec) -> None:
    """Raises SpecError where two data sets cannot train one model, or are one."""
    if (one.train, one.format) == (other.train, other.format):
        raise SpecError(
            f"data set '{other.name}' cannot be mixed into '{one.name}': both are the shards {', '.join(one.train)}; every "
            "example of them comes as often without --mix"
        )
    if one.task != other.task or (one.classes and other.classes and one.classes != other.classes):
        what = f"{one.task} and {other.task}" if one.task != other.task else "their classes differ"
        raise SpecError(
            f"data set '{other.name}' cannot be mixed into '{one.name}': {what}; give both entries the same task and classes"
        )


def division_of(group: Group, step: int, size: int, lanes: int, mix: Mix | None, mixed_lanes: int) -> Division | None:
    """How a group divides super-batch number `step` of `size` rows, with those of what is mixed in; None for one process."""
    if group.size == 1:
        return None
    if mix is None:
        return Division.of_step(group, step, (size, lanes))
    own, mixed = mix.counts(step, size)
    return Division.of_step(group, step, (own, lanes), (mixed, mixed_lanes))


class MixedDrawing:
    """Two drawings as one: the rows of both, in this order."""

    def __init__(self, own: Drawing, other: Drawing, mix: Mix, size: int, prefix: str) -> None:
        self.own, self.other, self.mix, self.size, self.prefix = own, other, mix, size, prefix
        self.room = own.room

    @property
    def drawn(self) -> int:
        return self.own.drawn

    @property
    def last_failure(self) -> Failure | None:
        return self.own.last_failure or self.other.last_failure

    def next(self) -> tuple[list[Row], list[bool]]:
        """As of one drawing."""
        counts = self.mix.counts(self.drawn, self.size)
        (rows, first), (more, more_first) = (d.next(n) for d, n in zip((self.own, self.other), counts, strict=True))
        return rows + more, first + more_first

    def close(self) -> None:
        self.own.close()
        self.other.close()

    def state(self) -> dict[str, Any]:
        return {**self.own.state(), MIX: {**self.other.state(), PREFIX: self.prefix}}
