"""Names of a package that are imported when they are first used, so that light commands need no heavy library."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`. `homes` says in which of its modules each name is, as `module` or `module:OTHER_NAME`; an
    empty home stands for the module of that name itself."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home, _, other = homes[name].partition(":")
        module = importlib.import_module(f".{home or name}", package)
        return getattr(module, other or name) if home else module

    return get
