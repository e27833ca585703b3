"""Savings at equal quality: at which of uniform's budgets it reaches another policy's quality. Pure functions.

Uniform's budgets form a ladder. Each rung is a complete run, whose learning rate decays to zero at its own budget, so a
point between two rungs estimates such a run. Nothing is extrapolated beyond the first and the last rung.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..units import percent

Where = Literal["on", "above", "below"]
WORDS = {"on": "", "above": "more than ", "below": "at most "}
# A loss reverses the bound: more than -12 % saved is less than 12 % lost.
WORDS_OF_A_LOSS = {"on": "", "above": "less than ", "below": "at least "}
MARKS = {"on": "", "above": "> ", "below": "≤ "}


@dataclass(frozen=True)
class Reached:
    """The x at which a ladder reaches a quality. `above`: the quality is above the last rung's, `x` is the last rung's;
    `below`: it is below the first rung's, `x` is the first rung's."""

    x: float
    where: Where


@dataclass(frozen=True)
class Saving:
    """Share of uniform's cost that is saved at equal quality: 0.5 is half, negative is a loss.

    `where` says whether `share` is the saving itself (`on` the ladder), a lower bound (`above`) or an upper bound
    (`below`).
    """

    share: float
    where: Where

    def __str__(self) -> str:
        """`71 %`, `more than 71 %` (above the ladder), `at most -12 %` (below it)."""
        return WORDS[self.where] + percent(self.share)

    @property
    def short(self) -> str:
        """`71 %`, `> 71 %`, `≤ -12 %`."""
        return MARKS[self.where] + percent(self.share)

    @property
    def gained(self) -> bool:
        """Whether this is known to be a gain; an upper bound is not."""
        return self.share > 0 and self.where != "below"

    @property
    def lost(self) -> bool:
        """Whether this is known to be a loss; a lower bound is not."""
        return self.share < 0 and self.where != "above"

    def spoken(self, less: str, more: str) -> str:
        """`71 % fewer`, `more than 71 % fewer`, `12 % more`, `at least 12 % more`."""
        return f"{self} {less}" if self.share >= 0 else f"{WORDS_OF_A_LOSS[self.where]}{percent(-self.share)} {more}"


def reached(xs: Sequence[float], qualities: Sequence[float], quality: float) -> Reached:
    """The smallest x at which the ladder reaches `quality`, linear in log x between rungs; never beyond them.

    `xs` ascend and are above 0. Raises ValueError where they do not, or where there are fewer than two rungs.
    """
    if len(xs) < 2 or len(xs) != len(qualities) or xs[0] <= 0 or any(a >= b for a, b in pairwise(xs)):
        raise ValueError("a ladder needs two rungs or more, ascending and above 0")
    if quality <= qualities[0]:
        return Reached(xs[0], "on" if quality == qualities[0] else "below")
    for i in range(1, len(xs)):
        if quality <= qualities[i]:
            share = (quality - qualities[i - 1]) / (qualities[i] - qualities[i - 1])
            return Reached(math.exp(_between(math.log(xs[i - 1]), math.log(xs[i]), share)), "on")
    return Reached(xs[-1], "above")


def quality_at(xs: Sequence[float], qualities: Sequence[float], x: float) -> float | None:
    """The ladder's quality at `x`, linear in log x between rungs; None outside them."""
    if not xs or not xs[0] * (1 - 1e-9) <= x <= xs[-1] * (1 + 1e-9):
        return None
    for i in range(1, len(xs)):
        if x <= xs[i]:
            share = (math.log(x) - math.log(xs[i - 1])) / (math.log(xs[i]) - math.log(xs[i - 1]))
            return _between(qualities[i - 1], qualities[i], max(0.0, share))
    return qualities[-1]


def saving(cost: float, ladder_costs: Sequence[float], qualities: Sequence[float], quality: float) -> Saving:
    """What a policy that reached `quality` at `cost` saved against the cost at which the ladder reaches it."""
    found = reached(ladder_costs, qualities, quality)
    return Saving(1 - cost / found.x, found.where)


def _between(a: float, b: float, share: float) -> float:
    return a + share * (b - a)
