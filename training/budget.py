"""Budgets and shares: how they are written, and how many steps a budget buys."""

from __future__ import annotations

import math
import re

from ..errors import BudgetError, SpecError

UNITS = {"": 1.0, "MF": 1e6, "GF": 1e9, "TF": 1e12, "PF": 1e15, "EF": 1e18, "ZF": 1e21}


def parse_flops(text: str) -> float:
    """FLOPs from `2e13`, `20TF` or `1.5 EF` (mega to zetta). Raises BudgetError."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([MGTPEZ]F)?(?:LOPS?)?\s*", text, re.IGNORECASE)
    try:
        value = float(found[1]) * UNITS[(found[2] or "").upper()] if found else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(f"budget '{text}' is not a number of FLOPs; write 2e13, 20TF or 1EF")
    return value


def parse_share(text: str, option: str) -> float:
    """A share in [0, 1] from `1%` or `0.01`. Raises SpecError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SpecError(f"{option} is '{text}', expected a share such as 1% or 0.01")
    return share


def format_flops(flops: float) -> str:
    """A short reading for people: `12.3 TF`."""
    for unit, size in reversed(UNITS.items()):
        if unit and flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.3g}"


def steps_within(budget: float, flops_per_step: float, charged: float = 0.0) -> int:
    """Whole steps that `budget` pays for after `charged`. Raises BudgetError where it is not even one."""
    steps = math.floor((budget - charged) / flops_per_step)
    if steps < 1:
        already = f" after {format_flops(charged)} for the reference" if charged else ""
        raise BudgetError(
            f"the budget of {format_flops(budget)}{already} is smaller than one step ({format_flops(flops_per_step)}); "
            "raise it, or lower --batch-size or the model's size"
        )
    return steps


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine that reaches zero exactly at `steps`, whatever the budget bought."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
