"""Which ranks of a run train, and which score (`--scorers`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .division import Division
from .group import Group
from .score_ahead import tensors_of


@dataclass(frozen=True)
class Roles:
    """The first ranks of `everybody` train, the last `scoring` of them score. With 0 all do both.

    `trainers` and `scorers` are the groups of each; of the one that this rank is not in, it is a group of one. `weights` are
    rank 0 and the scorers: from the one to the others go the weights.
    """

    everybody: Group
    scoring: int
    trainers: Group
    scorers: Group
    weights: Group

    @classmethod
    def of(cls, group: Group, scoring: int) -> Roles:
        """A collective, which gives the last `scoring` ranks of a group another role than the others, if any."""
        if not scoring:
            return cls(group, 0, group, group, Group())
        first = group.size - scoring
        return cls(
            group,
            scoring,
            trainers=group.part(range(first)),
            scorers=group.part(range(first, group.size)),
            weights=group.part([0, *range(first, group.size)]),
        )

    @property
    def training(self) -> int:
        """How many ranks train. The first one that scores has this number."""
        return self.everybody.size - self.scoring

    @property
    def trains(self) -> bool:
        return self.everybody.rank < self.training

    @property
    def scores(self) -> bool:
        """Whether this rank reads and scores examples."""
        return not self.scoring or not self.trains

    @property
    def sends(self) -> bool:
        """Whether it sends or receives weights."""
        return bool(self.scoring) and (self.everybody.is_first or not self.trains)

    def division(self, step: int, size: int, lanes: int) -> Division:
        """Super-batch number `step` as all ranks see it: the scorers hold it, and only the others train on what is chosen."""
        held = Division.of_step(Group(0, self.scoring), step, (size, lanes))
        return Division(self.everybody, held.holder_B + self.training, some_train=self.training)

    def send(self, module: nn.Module) -> None:
        """Give the scorers rank 0's weights of this module. A collective of those that send or receive."""
        if self.sends:
            self.weights.broadcast(tensors_of(module))


def values_of(module: nn.Module) -> list[torch.Tensor]:
    """All weights and buffers of a module, as a checkpoint holds them."""
    return [tensor.detach().cpu() for tensor in tensors_of(module)]
