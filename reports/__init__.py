"""Reports for people: SQL views over score tables and runs, comparisons, plots; and exports.

Names are imported when they are first used, so that options and help texts need no DuckDB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .output import FORMATS, write
    from .reading import query
    from .views import check_roots, connect

__all__ = ["FORMATS", "check_roots", "connect", "query", "write"]

__getattr__ = lazily(
    __name__, {"FORMATS": "output", "check_roots": "views", "connect": "views", "query": "reading", "write": "output"}
)
