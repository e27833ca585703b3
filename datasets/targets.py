"""The target of an example, its label or caption, by task. This is the one place where tasks are named."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ExampleError

# A score table stores labels as int32.
MAX_LABEL = 2**31 - 1
# A longer one is no caption, and would take minutes to tokenize.
MAX_TARGET_BYTES = 1 << 20
WHOLE = re.compile(r"[+-]?[0-9]+")
REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)
TRUTH = {"true": 1, "false": 0}


class Classes:
    """The names of the classes, and what a stored label means: a class's name, or its number from 0.

    A name comes first. Where all names are numbers and not those of their classes, such as years, labels are names alone.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        # Of two classes of one name the first; labels that are stored by name are then refused, by number they are not.
        self.by_name = {name.strip(): number for number, name in reversed(list(enumerate(self.names)))}
        self.repeated = {name.strip() for name, count in Counter(self.names).items() if count > 1}
        numbers = {name: int(name) for name in self.by_name if WHOLE.fullmatch(name) and len(name) < 20}
        own = all(name == str(self.by_name[name]) for name in numbers)
        self.names_alone = bool(self.names) and len(numbers) == len(self.names) and not own
        self.ambiguous = {
            name
            for name, number in numbers.items()
            if not self.names_alone and number != self.by_name[name] and 0 <= number < len(self.names)
        }

    def index(self, text: str, *, is_folder: bool = False) -> int:
        """The number of a stored label's class. `is_folder`: it is a folder's name. Raises ExampleError."""
        if text in self.by_name:
            if text in self.repeated:
                raise ExampleError("target", f"label '{text}' is the name of two classes; store their numbers")
            if text in self.ambiguous and not is_folder:
                raise ExampleError(
                    "target",
                    f"label '{text}' is the name of class {self.by_name[text]} and the number of another; store the "
                    "classes' names alone, or rename the class",
                )
            return self.by_name[text]
        label = _number(text) if not is_folder or WHOLE.fullmatch(text) else None
        if self.names_alone:
            if str(label) in self.by_name:  # 3.0 for a class named "3"
                return self.by_name[str(label)]
            raise ExampleError("target", f"label {text[:60]!r} is not one of the classes, whose names are numbers")
        if label is None:
            raise ExampleError("target", f"label {text[:60]!r} is neither a number nor one of the classes")
        return self.inside(label)

    def inside(self, label: int) -> int:
        """The same label. Raises ExampleError where it is no class's number."""
        if self.names and not 0 <= label < len(self.names):
            raise ExampleError("target", f"label {label} is outside the {len(self.names)} classes")
        if label < 0:
            raise ExampleError("target", f"label {label} is negative; labels are numbers from 0")
        if label > MAX_LABEL:
            raise ExampleError("target", f"label {label} is too large; labels are numbers from 0")
        return label

    def index_of_number(self, text: str, meanings: Sequence[str]) -> int:
        """As `index`, for a number that stands for one of the names that the file itself gives. Raises ExampleError."""
        label = _number(text)
        if label is None or not 0 <= label < len(meanings):
            raise ExampleError(
                "target", f"label {text[:60]} is outside the {len(meanings)} names in the file's metadata"
            )
        if not self.names:
            return label
        name = meanings[label]
        if name in self.by_name:
            return self.by_name[name]
        if len(meanings) == len(self.names) and self.by_name.keys().isdisjoint(meanings):  # other words for the same
            return label
        raise ExampleError("target", f"label {label} is '{name}' in the file's metadata, which is none of the classes")


def _number(text: str) -> int | None:
    """A whole number, a float that is whole, or a truth value. Raises ExampleError for other floats."""
    if WHOLE.fullmatch(text):
        if len(text) > 20:
            raise ExampleError("target", f"label {text[:60]} is too large; labels are numbers from 0")
        return int(text)
    if REAL.fullmatch(text):
        value = float(text)
        if not value.is_integer() or abs(value) > MAX_LABEL:
            raise ExampleError("target", f"label {text[:60]!r} is not a whole number that a class can have")
        return int(value)
    return TRUTH.get(text.lower())


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

    def parse(
        self,
        stored: bytes | None,
        field: str,
        classes: Classes,
        *,
        is_folder: bool = False,
        meanings: Sequence[str] = (),
    ) -> int | str:
        """The class index (stored as a number or as a class's name) or the text.

        `meanings` are the names that the file itself gives to the numbers 0, 1, ... Raises ExampleError.
        """
        if stored is None:
            told = f" ({field})" if field else ": the image is in no folder of a class"
            raise ExampleError("target", f"no {self.word}{told}")
        if len(stored) > MAX_TARGET_BYTES:
            raise ExampleError("target", f"{field} has {len(stored):,} bytes, at most {MAX_TARGET_BYTES:,} are read")
        try:
            # Some editors put a mark before a text, and columns of a fixed size NULs behind it.
            text = stored.decode("utf-8-sig").strip("\0").strip()
        except UnicodeDecodeError:
            raise ExampleError("target", f"{field} is not UTF-8") from None
        if not text:
            raise ExampleError("target", f"{field} is empty")
        if not self.has_classes:
            return text
        return classes.index_of_number(text, meanings) if meanings else classes.index(text, is_folder=is_folder)

    @property
    def kinds(self) -> str:
        """What a column or a JSON field may hold."""
        return "text, whole numbers or booleans" if self.has_classes else "text or a list of texts"


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


def task_of_path(format: str, found: Collection[str] = ()) -> str:
    """The task of a data set that is given as a path: folders are classes, shards hold captions, but where of the members or
    columns that were `found` in one some are labels and none captions."""
    labels_alone = LABEL.fields.get(format) in found and CAPTION.fields[format] not in found
    return (LABEL if format == "folder" or labels_alone else CAPTION).task
