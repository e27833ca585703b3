"""What people should know about their data and what no error is: said once, as a CurateWarning."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import CurateWarning, printable, without_secrets

_said: set[Hashable] = set()
# Names the folder in which processes of one command leave a file for what one of them has said.
SHARED = "CURATE_SAID"


def say_once(about: Hashable, message: str) -> None:
    """Warn, unless this was called with the same `about` before, in this process or in one beside it."""
    if about not in _said:
        _said.add(about)
        if not _is_first(about):
            return
        line = printable(without_secrets(" ".join(message.splitlines())))
        warnings.warn(line, CurateWarning, stacklevel=2)


def _is_first(about: Hashable) -> bool:
    folder = os.environ.get(SHARED)
    if not folder:
        return True
    name = hashlib.sha256(repr(about).encode("utf-8", "backslashreplace")).hexdigest()
    try:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:  # a full disk: better said twice than not
        return True
    return True


@contextmanager
def shared_by_processes() -> Iterator[None]:
    """What processes that are started within the block say, one of them says."""
    with TemporaryDirectory(prefix="curate-said-", ignore_cleanup_errors=True) as folder:
        os.environ[SHARED] = folder
        try:
            yield
        finally:
            os.environ.pop(SHARED, None)


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
