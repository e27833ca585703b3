"""How many steps a budget buys, and the learning rate that ends with them."""

from __future__ import annotations

import math

from ..errors import BudgetError
from ..units import format_flops


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
