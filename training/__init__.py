"""Super-batch join, loop, ledger, evaluation, checkpoints: the one room that needs a backward pass.

Names are imported when they are first used, so that options need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import RunOptions
    from .run import train

_HOMES = {"RunOptions": "options", "train": "run"}
__all__ = ["RunOptions", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
