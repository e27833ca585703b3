"""Figures as people write them and read them: FLOPs, bytes, shares, ratios, lists. And how progress is reported."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from .errors import BudgetError, SpecError

Report = Callable[[str], None]
"""Takes one line of progress for people."""

# Seconds. Nobody waits for what is shorter, so it is not told.
NOT_WORTH_SAYING = 5.0

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
    return f"{flops / UNITS['MF']:.3g} MF" if flops >= 1000 else f"{flops:.3g}"


BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_bytes(text: str, option: str) -> int:
    """Bytes from `1GiB`, `1.5 GB` or `1000000`. Raises SpecError."""
    found = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]I?B)?\s*", text, re.IGNORECASE)
    if not found:
        raise SpecError(f"{option} is '{text}', expected a number of bytes such as 512MiB or 2GiB")
    return int(float(found[1]) * BYTES[(found[2] or "").upper()])


def format_bytes(count: int) -> str:
    """Bytes that `parse_bytes` reads back exactly: `2GiB`, or the plain number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = BYTES[unit.upper()]
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


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
    return text.replace("-0.0%", "0.0%").replace("%", " %").replace("-", "\N{MINUS SIGN}")


def accuracy(share: float) -> str:
    """A quality in [0, 1]: `68.3 %`."""
    return f"{share * 100:.1f} %"


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def took(seconds: float) -> str:
    """` (45 s)`, for the end of a line; nothing below five seconds."""
    return f" ({format_duration(seconds)})" if seconds >= NOT_WORTH_SAYING else ""


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 shard`, `1,000 shards`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


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


def parse_multiple(text: str, option: str) -> float:
    """One number from `1x` or `0.5`. Raises SpecError."""
    numbers = parse_numbers(text, option)
    if len(numbers) != 1:
        raise SpecError(f"{option} is '{text}', expected one multiple of the budget such as 1x")
    return numbers[0]


def parse_names(text: str, option: str) -> tuple[str, ...]:
    """Names from `uniform,learnability`. Raises SpecError where there is none."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise SpecError(f"{option} is '{text}', expected names separated by commas")
    return names
