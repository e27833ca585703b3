"""A super-batch divided among the ranks of a group: each holds the rows of its lanes, and trains on its share of the chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from ..datasets.order import quotas
from ..scoring.losses import Losses, Pairs
from .deal import deal
from .group import Group
from .packing import bytes_of_row, packed, packed_texts, unpacked, unpacked_texts, width_of

# Rows of more bytes are gathered by themselves: packing them would take longer than a message.
NARROW = 64


@dataclass(frozen=True)
class Division:
    """Which rank holds each of the B rows of a super-batch, int64 [B]. This rank has those of its number, in their order.
    Of those that are chosen, only the first ranks are dealt some, `some_train` in number; all where it is None. `widths` are
    the greatest `width_of` all ranks' shards, keys and captions; none until they are agreed on."""

    group: Group
    holder_B: np.ndarray
    some_train: int | None = None
    widths: list[int] = field(default_factory=list)

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

    def whole_of_all(self, columns: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same of several tensors [n, ...], in as few messages as pay. A collective."""
        narrow: dict[torch.device, list[int]] = {}
        found: dict[int, torch.Tensor] = {}
        for i, column in enumerate(columns):
            if bytes_of_row(column) > NARROW:
                found[i] = self.whole(column)
            else:
                narrow.setdefault(column.device, []).append(i)
        for together in narrow.values():
            some = [columns[i] for i in together]
            found |= zip(together, unpacked(self.whole(packed(some)), some), strict=True)
        return [found[i] for i in range(len(columns))]

    def whole_texts(self, texts: Sequence[Sequence[str]]) -> list[list[str]]:
        """Lists of all B texts in the order of the super-batch, given each rank's own. A collective."""
        widths = agreed_widths(self.group, self.widths, texts)
        rows = [packed_texts(some, width) for some, width in zip(texts, widths, strict=False)]
        return [unpacked_texts(column) for column in unpacked(self.whole(packed(rows)), rows)]

    @cached_property
    def _own(self) -> np.ndarray:
        """Of each of the B rows that this rank holds: which of its own it is, int64 [B]."""
        return np.cumsum(self.holder_B == self.group.rank) - 1

    def held(self, index: Sequence[int]) -> dict[int, int]:
        """Of the rows at `index`, those that this rank holds: which of its own each is."""
        return {i: int(self._own[i]) for i in index if self.holder_B[i] == self.group.rank}

    def deal(self, index_b: torch.Tensor) -> Deal:
        """Who trains on which of the chosen rows `index_b`, int64 [b], ascending."""
        chosen_b = index_b.cpu().numpy()
        holder_b = self.holder_B[chosen_b]
        trainer_b = deal(holder_b, self.group.size, self.training)
        own, rank = self._own, self.group.rank
        mine = holder_b == rank
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
            widths=self.widths,
        )


@dataclass(frozen=True)
class Deal:
    """What this rank keeps of its rows (`keep`), which of them it sends to each rank (`send`), and how many it receives from
    each (`receive`).

    `positions`, int64 [n], are the numbers, among the b chosen, of the rows that it trains on. `moved` counts the rows
    that any rank sends. `widths` are the division's.
    """

    group: Group
    keep: torch.Tensor
    send: list[torch.Tensor]
    receive: list[int]
    order: torch.Tensor
    positions: torch.Tensor
    moved: int
    widths: Sequence[int] = ()

    def sent(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Of the rows [n, ...] that this rank holds, those for each rank."""
        return [rows[part.to(rows.device)] for part in self.send]

    def placed(self, rows: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
        """The rows that this rank trains on, given those that it holds and those that it received."""
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

    def placed_texts(self, texts: Sequence[str], received: Sequence[str]) -> list[str]:
        """The same of texts."""
        found = [*(texts[i] for i in self.keep.tolist()), *received]
        return [found[i] for i in self.order.tolist()]


def dealt_rows(
    deal: Deal, columns: Sequence[tuple[Deal, torch.Tensor]], texts: Sequence[Sequence[str]]
) -> tuple[list[torch.Tensor], list[list[str]]]:
    """What this rank trains on: rows of each tensor [n, ...] and of each list of texts, given those that it holds. The deal
    beside a tensor is the same one among the rows that the tensor has. A collective.
    """
    received, more_texts = received_rows(deal, columns, texts)
    rows = [of.placed(held, more) for (of, held), more in zip(columns, received, strict=True)]
    return rows, [deal.placed_texts(held, more) for held, more in zip(texts, more_texts, strict=True)]


def received_rows(
    deal: Deal, columns: Sequence[tuple[Deal, torch.Tensor]], texts: Sequence[Sequence[str]]
) -> tuple[list[torch.Tensor], list[list[str]]]:
    """Of the same, what other ranks send to this one: in one message, or one more for what lies on a GPU. A collective."""
    found, found_texts = [rows[:0] for _, rows in columns], [list[str]() for _ in texts]
    if not deal.moved:
        return found, found_texts
    widths = agreed_widths(deal.group, deal.widths, texts)
    cpu = torch.device("cpu")
    for device in dict.fromkeys([cpu, *(rows.device for _, rows in columns)]):
        places = [i for i, (_, rows) in enumerate(columns) if rows.device == device]
        parts = [columns[i][0].sent(columns[i][1]) for i in places]
        if device == cpu:
            for some, width in zip(texts, widths, strict=False):
                parts.append([packed_texts([some[i] for i in to.tolist()], width) for to in deal.send])
        content = deal.group.exchange([packed(to_one) for to_one in zip(*parts, strict=True)], deal.receive)
        received = unpacked(torch.cat(content), [part[0] for part in parts])
        for i, rows in zip(places, received, strict=False):
            found[i] = rows
        if device == cpu:
            found_texts = [unpacked_texts(rows) for rows in received[len(places) :]]
    return found, found_texts


def agreed_widths(group: Group, widths: Sequence[int], texts: Sequence[Sequence[str]]) -> Sequence[int]:
    """The widths, or those of all ranks where they were not agreed on before. A collective then."""
    return widths or group.agree(None, *map(width_of, texts))


def whole_losses(known: Losses, division: Division) -> Losses:
    """What is known of the whole super-batch, given what each rank knows of its rows. A collective."""
    own: list[torch.Tensor] = []

    def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Losses:
        def rows(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else change(values)

        def pairs(of: Pairs | None) -> Pairs | None:
            if of is None:
                return None
            return replace(of, image_BD=change(of.image_BD), text_BD=change(of.text_BD), group_B=rows(of.group_B))

        return Losses(
            rows(known.online_B),
            rows(known.reference_B),
            pairs(known.online_pairs),
            pairs(known.reference_pairs),
            rows(known.age_B),
            rows(known.chosen_B),
            rows(known.past_B),
        )

    def noted(rows: torch.Tensor) -> torch.Tensor:
        own.append(rows)
        return rows

    each(noted)
    whole = iter(division.whole_of_all(own))
    return each(lambda _: next(whole))
