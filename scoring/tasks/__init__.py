"""Tasks by name. Each task is one file here; `datasets/targets.py` has its name and the target of its examples."""

from __future__ import annotations

from ...errors import SpecError
from ..models import Task
from .classification import Classification
from .image_text import ImageText

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), ImageText())}


def find_task(name: str) -> Task:
    """Raises SpecError for a name that no task has."""
    if name not in TASKS:
        raise SpecError(f"task is '{name}', expected one of {', '.join(TASKS)}")
    return TASKS[name]
