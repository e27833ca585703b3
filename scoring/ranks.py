"""What scoring needs of the processes (ranks) that share a run's work; `training.group.Group` gives it.

Shape suffixes: b examples over all ranks, n of them on this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Ranks(Protocol):
    """Every method is a collective, but within `together` there may be none. See `Group`."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, rows: torch.Tensor, lengths: Sequence[int] | None = None) -> list[torch.Tensor]: ...

    def sum(self, values: torch.Tensor) -> torch.Tensor: ...

    def share(self, value: T) -> list[T]: ...

    def together(self) -> Any: ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, rows: torch.Tensor, lengths: Sequence[int] | None = None) -> list[torch.Tensor]:
        return [rows]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def share(self, value: T) -> list[T]:
        return [value]

    @contextmanager
    def together(self) -> Iterator[None]:
        yield


ALONE = Alone()


def all_rows(rows_n: torch.Tensor, ranks: Ranks) -> tuple[torch.Tensor, int]:
    """The rows of all ranks, [b, ...], and where this rank's begin among them. Gradients flow back to the rows' own ranks:
    each gets the sum of what all ranks' losses say of its rows. A collective, forward and backward.
    """
    if ranks.size == 1:
        return rows_n, 0
    rows_b, start = _AllRows.apply(rows_n, ranks)  # type: ignore[no-untyped-call]
    return rows_b, int(start)


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_n: torch.Tensor, ranks: Ranks) -> tuple[torch.Tensor, int]:
        parts = ranks.gather(rows_n.detach())
        start = sum(len(part) for part in parts[: ranks.rank])
        ctx.ranks, ctx.own = ranks, slice(start, start + len(rows_n))
        return torch.cat(parts), start

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        return ctx.ranks.sum(gradients[0].contiguous())[ctx.own], None
