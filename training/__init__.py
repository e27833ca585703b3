"""Super-batch join, loop, ledger, evaluation, checkpoints: the one room that needs a backward pass.

Names are imported when they are first used, so that options need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .options import RunOptions
    from .run import train

_HOMES = {"RunOptions": "options", "train": "run"}
__all__ = ["RunOptions", "train"]

__getattr__ = lazily(__name__, _HOMES)
