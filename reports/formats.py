"""The two formats of reports that people read and programs parse."""

from __future__ import annotations

from ..errors import SpecError

FORMATS = ("table", "json")


def check_format(format: str) -> None:
    """Raises SpecError for another format. Call it before work that takes long."""
    if format not in FORMATS:
        raise SpecError(f"--format is '{format}', expected {' or '.join(FORMATS)}")
