"""What people look at: SQL views over scores and runs, comparisons, plots."""

from .output import FORMATS, write
from .reading import query
from .views import connect

__all__ = ["FORMATS", "connect", "query", "write"]
