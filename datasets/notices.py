"""What people should know about their data and what no error is: said once in a process, as a CurateWarning."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

from ..errors import CurateWarning, printable, without_secrets

_said: set[Hashable] = set()


def say_once(about: Hashable, message: str) -> None:
    """Warn, unless this was called with the same `about` before."""
    if about not in _said:
        _said.add(about)
        line = printable(without_secrets(" ".join(message.splitlines())))
        warnings.warn(line, CurateWarning, stacklevel=2)


def in_one_line() -> None:
    """From now on this process prints a CurateWarning as `curate: ...`, without the place in the code."""
    warnings.formatwarning = _formatted


_others = warnings.formatwarning


def _formatted(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
    is_ours = issubclass(category, CurateWarning)
    return f"curate: {message}\n" if is_ours else _others(message, category, *where, **line)


def counted(kinds: Iterable[str], most: int = 4) -> str:
    """`3 .heic, 1 .xml`, the most frequent first."""
    counts = sorted(Counter(kinds).items(), key=lambda item: (-item[1], item[0]))
    more = sum(count for _, count in counts[most:])
    return ", ".join([f"{count:,} {kind}" for kind, count in counts[:most]] + ([f"{more:,} others"] if more else []))
