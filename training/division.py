"""A super-batch divided among the ranks of a group: each holds the rows of its lanes, and trains on its share of the chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from ..datasets.order import quotas
from ..scoring.losses import Losses, Pairs
from .deal import deal
from .group import Group

T = TypeVar("T")


@dataclass(frozen=True)
class Division:
    """Which rank holds each of the B rows of a super-batch, int64 [B]. This rank has those of its number, in their order.
    Of those that are chosen, only the first ranks are dealt some, `some_train` in number; all where it is None."""

    group: Group
    holder_B: np.ndarray
    some_train: int | None = None

    @classmethod
    def of_step(cls, group: Group, step: int, *parts: tuple[int, int]) -> Division:
        """Of super-batch number `step`: rank r holds the rows of the lanes r, r + W, r + 2 W, ... `parts` are the rows and
        lanes of each data set in it."""
        lanes = [np.repeat(np.arange(lanes), quotas(step, size, lanes)) for size, lanes in parts]
        return cls(group, np.concatenate(lanes) % group.size)

    def __len__(self) -> int:
        return len(self.holder_B)

    @property
    def training(self) -> int:
        """How many ranks train."""
        return self.group.size if self.some_train is None else self.some_train

    @property
    def rows(self) -> list[int]:
        """How many of the B rows each rank holds."""
        found: list[int] = np.bincount(self.holder_B, minlength=self.group.size).tolist()
        return found

    @cached_property
    def _order(self) -> torch.Tensor:
        """Where the rows of rank 0, of rank 1, and so on stand in the super-batch."""
        return torch.from_numpy(np.argsort(self.holder_B, kind="stable"))

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """All B rows in the order of the super-batch, given each rank's own. A collective."""
        found = torch.cat(self.group.gather(rows, self.rows))
        return torch.empty_like(found).index_copy_(0, self._order.to(found.device), found)

    def whole_list(self, values: list[T]) -> list[T]:
        """All B values in the order of the super-batch, given each rank's own. A collective."""
        found = [value for part in self.group.share(values) for value in part]
        places = self._order.tolist()
        by_place = dict(zip(places, found, strict=True))
        return [by_place[place] for place in range(len(found))]

    def held(self, index: Sequence[int]) -> dict[int, int]:
        """Of the rows at `index`, those that this rank holds: which of its own each is."""
        own = np.cumsum(self.holder_B == self.group.rank) - 1
        return {i: int(own[i]) for i in index if self.holder_B[i] == self.group.rank}

    def deal(self, index_b: torch.Tensor) -> Deal:
        """Who trains on which of the chosen rows `index_b`, int64 [b], ascending."""
        chosen_b = index_b.cpu().numpy()
        holder_b = self.holder_B[chosen_b]
        trainer_b = deal(holder_b, self.group.size, self.training)
        own = np.cumsum(self.holder_B == self.group.rank) - 1  # of each of my rows: which of mine it is
        mine = holder_b == self.group.rank
        rank = self.group.rank
        send = [
            torch.from_numpy(own[chosen_b[mine & (trainer_b == to)]])
            if to != rank
            else torch.empty(0, dtype=torch.int64)
            for to in range(self.group.size)
        ]
        kept = np.flatnonzero(mine & (trainer_b == rank))
        none = np.empty(0, dtype=np.int64)
        received = [
            np.flatnonzero((holder_b == s) & (trainer_b == rank)) if s != rank else none for s in range(self.group.size)
        ]
        positions = np.concatenate([kept, *received])
        return Deal(
            self.group,
            keep=torch.from_numpy(own[chosen_b[kept]]),
            send=send,
            receive=[len(part) for part in received],
            order=torch.from_numpy(np.argsort(positions)),
            positions=torch.from_numpy(np.sort(positions)),
            moved=int((holder_b != trainer_b).sum()),
        )


@dataclass(frozen=True)
class Deal:
    """What this rank keeps of its rows (`keep`), which of them it sends to each rank (`send`), and how many it receives from
    each (`receive`).

    `positions`, int64 [n], are the numbers, among the b chosen, of the rows that it trains on. `moved` counts the rows
    that any rank sends.
    """

    group: Group
    keep: torch.Tensor
    send: list[torch.Tensor]
    receive: list[int]
    order: torch.Tensor
    positions: torch.Tensor
    moved: int

    def received(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """The rows that other ranks send to this one, given those that it holds. A collective."""
        if not self.moved:
            return []
        return self.group.exchange([rows[part.to(rows.device)] for part in self.send], self.receive)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows [n, ...] that this rank trains on, given those that it holds. A collective."""
        received = torch.cat([rows[:0], *self.received(rows)])
        kept, order = len(self.keep), self.order
        if not kept:
            return received[order.to(rows.device)]
        # One copy of what is kept, which is most of the batch; then what was received is put in its places.
        found = rows[self.keep[order.clamp(max=kept - 1)].to(rows.device)]
        if len(received):
            places = (order >= kept).nonzero().squeeze(1)
            found[places.to(rows.device)] = received[(order[places] - kept).to(rows.device)]
        return found

    def of_chosen(self) -> tuple[list[int], Deal]:
        """Which of its rows this rank keeps or sends, ascending, and the same deal where it holds those alone."""
        places = torch.cat([self.keep, *self.send]).unique()

        def among(part: torch.Tensor) -> torch.Tensor:
            return torch.searchsorted(places, part)

        return places.tolist(), replace(self, keep=among(self.keep), send=[among(part) for part in self.send])

    def take_list(self, values: list[T]) -> list[T]:
        """The same for values that are no tensors. A collective."""
        found = [values[i] for i in self.keep.tolist()]
        if self.moved:
            sent = self.group.exchange_lists([[values[i] for i in part.tolist()] for part in self.send])
            found += [value for by_rank in sent for value in by_rank]
        return [found[i] for i in self.order.tolist()]


def whole_losses(known: Losses, division: Division) -> Losses:
    """What is known of the whole super-batch, given what each rank knows of its rows. A collective."""

    def whole(rows: torch.Tensor | None) -> torch.Tensor | None:
        return None if rows is None else division.whole(rows)

    def whole_pairs(pairs: Pairs | None) -> Pairs | None:
        if pairs is None:
            return None
        image_BD, text_BD = division.whole(pairs.image_BD), division.whole(pairs.text_BD)
        return replace(pairs, image_BD=image_BD, text_BD=text_BD, group_B=whole(pairs.group_B))

    return Losses(
        whole(known.online_B),
        whole(known.reference_B),
        whole_pairs(known.online_pairs),
        whole_pairs(known.reference_pairs),
        whole(known.age_B),
        whole(known.chosen_B),
        whole(known.past_B),
    )
