"""A reference that trains during the run, as in Online-ClassAct: no score table, and losses of its present weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .augment import augment_views
from .batch import SuperBatch
from .trainee import Trainee, align

NAME = "reference"
"""What its view, its weights and its line in the manifest are called."""
# The paper's: its learning rate over the online model's.
RATE = 2.0


@dataclass(frozen=True, kw_only=True)
class MovingReference:
    """It learns from every example of every super-batch, and never from the choice: a reference that is trained on what was
    selected chooses worse (as RHO-LOSS measured). It takes a step after every `every` super-batches, on all of their examples.

    `augment` says how its images are augmented, by random numbers of its own, `augmenting`.
    """

    trainee: Trainee
    every: int
    augment: str
    augmenting: torch.Generator

    def learn(self, batch: SuperBatch, step: int, lr_share: float) -> torch.Tensor:
        """Learn from the super-batch of `step`, counted from 1, after it was scored. Returns the detached loss.

        In a group each rank learns from B / W of its examples, and what is returned is weighted as by `Trainee.step`. A
        collective then.
        """
        B, weight, places = len(batch.division or batch), 1.0, None
        batch = replace(batch, views={NAME: batch.views[NAME]})  # no other view need be made of all
        if batch.division is not None:
            ranks, deal = batch.division.group.size, batch.division.deal(torch.arange(B))
            batch = batch.dealt(deal)
            weight, places = len(batch) * ranks / B, (B, deal.positions)
        views = augment_views(batch.views, (NAME,), self.augment, self.augmenting, places)
        loss = self.trainee.add(views[NAME], batch.model_targets(NAME), weight / self.every)
        if step % self.every == 0:
            self.trainee.update(lr_share)
        align([self.trainee])
        return loss * self.every
