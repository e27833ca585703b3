"""The local choice: each rank of a group chooses its share of b among its own rows of the super-batch.

No score and no image goes from one rank to another. The choice is another one at another number of ranks, and a poorer
one: a rank that holds many good examples may not take more than its share (docs/distributed.md has figures).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..datasets.readers import Failure
from ..errors import SpecError
from ..scoring.selection import Selection
from ..scoring.selector import Selector
from .batch import SuperBatch
from .division import Division
from .group import Group


def local_shares(held: Sequence[int], b: int) -> list[int]:
    """How many examples each rank chooses, given how many of the super-batch each holds: in proportion, b in all. What is
    lost by rounding down goes to the largest remainders."""
    size = sum(held)
    found = [b * rows // size for rows in held]
    first = sorted(range(len(held)), key=lambda rank: (-(b * held[rank] % size), rank))[: b - sum(found)]
    return [rows + (rank in first) for rank, rows in enumerate(found)]


def least_share(group: Group, lanes: int, size: int, b: int) -> int:
    """The fewest examples that a rank chooses in any step. Raises SpecError where that may be none."""
    least = b * (lanes // group.size * (size // lanes)) // size
    if not least:
        raise SpecError(
            f"with the local choice each of {group.size} ranks chooses among the rows of its own lanes, and of {lanes} lanes "
            f"one would choose none of b = {b}; start fewer ranks, raise lanes, or choose globally"
        )
    return least


class LocalSelector:
    """A selector of a whole group that chooses among one rank's rows. Raises SpecError for a joint policy."""

    def __init__(self, selector: Selector, group: Group) -> None:
        if selector.policy.joint:
            raise SpecError(
                f"policy '{selector.policy.name}' compares all pairs of the super-batch, and the local choice knows one "
                "rank's; choose globally"
            )
        self._whole, self._group = selector, group

    def of_step(self, division: Division) -> tuple[Selector, int]:
        """The selector of this rank's rows of a super-batch, and how many of b the ranks before it choose.

        Every rank draws one number from the random numbers that all have alike, so that a checkpoint holds one state. Its own
        follow from that number and its rank.
        """
        rank = self._group.rank
        shares = local_shares(division.rows, self._whole.b)
        drawn = int(torch.randint(1 << 62, (1,), generator=self._whole.generator))
        own = copy.copy(self._whole)
        own.b, own.generator = shares[rank], torch.Generator().manual_seed(drawn + rank)
        return own, sum(shares[:rank])


def everybodys(failures: list[Failure], group: Group) -> list[Failure]:
    """The failures of all ranks, on each of them. A collective."""
    if not int(group.sum(torch.tensor(len(failures)))):
        return []
    return [failure for part in group.share(failures) for failure in part]


def whole_selection(batch: SuperBatch, selection: Selection) -> Selection:
    """The choice among all B examples; `selection` as it is where it is that already. A collective where a group divides
    the super-batch and each rank chose among its own rows."""
    division = batch.division
    if division is None or selection.score is None or len(selection.score) == len(division):
        return selection
    chosen = torch.zeros(len(selection.score), dtype=torch.bool, device=selection.score.device)
    chosen[selection.index] = True

    def whole(rows: torch.Tensor | None) -> torch.Tensor | None:
        return None if rows is None else division.whole(rows)

    return replace(
        selection,
        index=division.whole(chosen).nonzero().squeeze(1),
        score=whole(selection.score),
        online_loss=whole(selection.online_loss),
        reference_loss=whole(selection.reference_loss),
    )
