"""Reports for people: SQL views over score tables and runs, comparisons, plots."""

from .output import FORMATS, write
from .reading import query
from .views import connect

__all__ = ["FORMATS", "connect", "query", "write"]
