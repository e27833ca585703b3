"""The learning rate of a run: it ends with the budget."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: int, cooldown: int | None = None) -> float:
    """Linear warm-up over `warmup` steps, then a cosine that reaches zero exactly at `steps`, whatever the budget bought. With
    `cooldown` the peak is held, and falls linearly to that zero over so many last steps (arXiv 2405.18392)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if cooldown is not None:
        return peak * min(1.0, (steps - step) / max(1, cooldown))
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
