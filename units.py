"""Figures as people write them and read them: FLOPs, shares, ratios, lists of numbers. And how progress is reported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from .errors import BudgetError, SpecError

Report = Callable[[str], None]
"""Takes one line of progress for people."""

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


def format_flops(flops: float) -> str:
    """FLOPs with the largest unit that fits: `12.3 TF`."""
    for unit, size in reversed(UNITS.items()):
        if unit and flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.3g}"


def parse_share(text: str, option: str) -> float:
    """A share in [0, 1] from `1%` or `0.01`. Raises SpecError."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise SpecError(f"{option} is '{text}', expected a share such as 1% or 0.01")
    return share


def percent(share: float) -> str:
    """A difference: whole percents, one digit more below 10 %: `64 %`, `−9.1 %`."""
    text = f"{share:.0%}" if abs(share) >= 0.0995 else f"{share:.1%}"
    return text.replace("%", " %").replace("-", "\N{MINUS SIGN}")


def accuracy(share: float) -> str:
    """A quality in [0, 1]: `68.3 %`."""
    return f"{share * 100:.1f} %"


def parse_ratio(text: str) -> float:
    """A positive ratio from `1/49` or `0.02`. Raises SpecError."""
    above, _, below = text.partition("/")
    try:
        ratio = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 0 < ratio < math.inf:
        raise SpecError(f"--ratio is '{text}', expected F_online / F_learner above 0, such as 1/49 or 0.02")
    return ratio


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers from `0.5x,1x,2x` or `1e-3,2e-3`. Raises SpecError."""
    try:
        return tuple(float(part.strip().removesuffix("x")) for part in text.split(",") if part.strip())
    except ValueError:
        raise SpecError(f"{option} is '{text}', expected numbers separated by commas") from None
