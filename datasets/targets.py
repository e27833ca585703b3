"""The target of an example, its label or caption, by task. This is the one place where tasks are named."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ExampleError


@dataclass(frozen=True)
class Target:
    """The target of one task.

    `task` is its name in curate.toml, `setting` the setting that says which member or column holds the target, `word`
    what people call it, `fields` the default member or column, by format. `has_classes`: targets are classes, numbered
    from 0 or named by the data set's `classes`; otherwise they are text. `in_folder_name`: in an image folder the first
    folder of an image's path is its target; otherwise a file next to the image holds it.
    """

    task: str
    setting: str
    word: str
    fields: Mapping[str, str]
    has_classes: bool
    in_folder_name: bool

    def parse(self, stored: bytes | None, field: str, classes: Sequence[str], format: str) -> int | str:
        """The class index (stored as a number or as a class's name) or the text. Raises ExampleError."""
        if stored is None:
            raise ExampleError("target", f"no {self.word} ({field})")
        try:
            text = stored.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ExampleError("target", f"{field} is not UTF-8") from None
        if not text:
            raise ExampleError("target", f"{field} is empty")
        return _class_index(text, classes, format) if self.has_classes else text


def _class_index(text: str, classes: Sequence[str], format: str) -> int:
    if format == "folder" and text in classes:  # a folder named "10" is a name, not the eleventh class
        return classes.index(text)
    try:
        label = int(text)
    except ValueError:
        if text not in classes:
            raise ExampleError("target", f"label {text[:60]!r} is neither a number nor one of the classes") from None
        label = classes.index(text)
    if label < 0 or (classes and label >= len(classes)):
        raise ExampleError("target", f"label {label} is outside the {len(classes)} classes")
    return label


LABEL = Target(
    task="classification",
    setting="label",
    word="label",
    fields={"webdataset": "cls", "parquet": "label"},
    has_classes=True,
    in_folder_name=True,
)
CAPTION = Target(
    task="image-text",
    setting="text",
    word="caption",
    fields={"webdataset": "txt", "parquet": "text", "folder": "txt"},
    has_classes=False,
    in_folder_name=False,
)
TARGETS = {target.task: target for target in (LABEL, CAPTION)}


def hash_target(stored: bytes) -> int:
    """64 bits of BLAKE2b of a label or caption as stored. The join compares them."""
    return int.from_bytes(hashlib.blake2b(stored, digest_size=8).digest(), "little")


def default_task(settings: Mapping[str, object]) -> str:
    """The task of an entry that names none: image-text where the entry has `text`."""
    return (CAPTION if settings.get(CAPTION.setting) else LABEL).task


def task_of_path(format: str) -> str:
    """The task of a data set that is given as a path: folders are classes, shards hold captions."""
    return (LABEL if format == "folder" else CAPTION).task
