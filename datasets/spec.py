"""What a data set is: an entry of curate.toml, or a path in its place."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

from ..errors import CurateError, SpecError, nearest, printable
from .config import CONFIG_NAME, Config, add_dataset, add_model, load_config
from .fields import split_field
from .inference import (
    IMAGE_EXTENSIONS,
    OLD_EXTENSIONS,
    classes_in_files,
    classes_in_folders,
    classes_of_file,
    fields_of_first,
    guess_format,
)
from .patterns import other_spelling
from .targets import TARGETS, Classes, Target, default_task, task_of_path

__all__ = [
    "Config",
    "DatasetSpec",
    "add_dataset",
    "add_model",
    "analysis_files",
    "find_dataset",
    "load_config",
    "spec_from_path",
    "spec_from_table",
]

FORMATS = ("webdataset", "parquet", "folder")
SINGLE_STRINGS = ("task", "format", "label", "text", "captions", "key", "analysis", "description")
LISTS = ("train", "test", "validation", "image", "classes", "templates")
# Fields of a spec that an entry cannot set.
NOT_SETTINGS = ("name", "classes_from", "hold_out")
# The setting `captions` of texts that have a caption on each line.
IN_LINES = "lines"
# A name is a folder's in a score table, and is a word in logs and globs.
NOT_IN_NAMES = set("/\\[]{}*?%#")

Format = Literal["webdataset", "parquet", "folder"]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One data set. Patterns may hold braces, globs and `a::b`, and any fsspec URL.

    `image`, `label` and `text` name tar extensions or Parquet columns. An image-text data set may also have a
    `label` and `classes`: zero-shot classification is then evaluated on its test split with `templates`.
    `analysis` points at Parquet files with columns (shard, key, ...) that only reports read, never training.
    `classes_from` is `metadata` where the classes are those that Parquet files name themselves. Settings are searched on
    `validation`, a split of its own. With `hold_out` above 0 this share of train, found by a hash of shard and key, is the
    test split and is not trained on. `captions` is `lines` where a text holds several captions, one on each line.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    hold_out: float = 0.0
    task: str
    format: Format
    image: tuple[str, ...] = ()
    label: str = ""
    text: str = ""
    key: str = ""
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a picture of {}.",)
    rows_per_shard: int = 10_000
    analysis: str = ""
    description: str = field(default="", compare=False)
    classes_from: str = ""
    captions: str = ""

    def __post_init__(self) -> None:
        where = f"data set '{self.name}'"
        if not is_name(self.name):
            raise SpecError(
                f"data set {self.name!r}: a name is a folder's in the score table; use letters, digits, '-', '_' and '.'"
            )
        if self.task not in TARGETS:
            raise SpecError(
                f"{where}: task is '{self.task}', expected one of {', '.join(TARGETS)}{nearest(self.task, TARGETS)}"
            )
        if self.format not in FORMATS:
            raise SpecError(
                f"{where}: format is '{self.format}', expected one of {', '.join(FORMATS)}{nearest(self.format, FORMATS)}"
            )
        if not self.train:
            raise SpecError(f'{where}: no train shards are named; set train = "path/{{000..099}}.tar"')
        if self.rows_per_shard < 1:
            raise SpecError(f"{where}: rows_per_shard is {self.rows_per_shard}, expected at least 1")
        if any("{}" not in template for template in self.templates):
            raise SpecError(f"{where}: every zero-shot template needs a {{}} for the class name")

    @property
    def target(self) -> Target:
        return TARGETS[self.task]

    @property
    def target_field(self) -> str:
        """The tar extension or Parquet column that holds the target."""
        return str(getattr(self, self.target.setting))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def class_names(self) -> Classes:
        return Classes(self.classes)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the settings that say what an example is, not of where the shards are or how many.

        Endings that were added to the default ones, and names that only explain stored numbers, do not change it.
        """
        counts = self.target.has_classes and not self.classes_from
        meaning: dict[str, Any] = {
            "task": self.task,
            "format": self.format,
            "image": OLD_EXTENSIONS if self.image == IMAGE_EXTENSIONS else self.image,
            "target": self.target_field,
            "key": self.key,
            "classes": self.classes if counts else (),
            "rows_per_shard": self.rows_per_shard if self.format == "parquet" else 0,
        }
        if self.captions and not self.target.has_classes:
            meaning["captions"] = self.captions
        if counts and self.class_names.names_alone and self.format != "folder":
            meaning["labels"] = "names"  # tables of version 0.1 took them for numbers
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. Newer settings are left out where they are not set, as in older manifests."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v or k not in ("validation", "hold_out", "classes_from", "captions")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def is_name(text: str) -> bool:
    """Whether a data set may be called so."""
    return (
        bool(text) and text == text.strip() and text[0] != "." and text.isprintable() and NOT_IN_NAMES.isdisjoint(text)
    )


def find_dataset(name: str, config: Config | None = None) -> DatasetSpec:
    """Resolve a name of curate.toml, or a path/URL pattern (its task follows from its format's usual fields)."""
    config = config if config is not None else load_config()
    if name not in config.datasets:  # accents are spelled in two ways, which look the same
        name = next((known for known in config.datasets if normalize("NFC", known) == normalize("NFC", name)), name)
    if name in config.datasets:
        assert config.path is not None
        spec = spec_from_table(name, config.datasets[name], base=config.path.parent)
        return replace(spec, hold_out=config.hold_out.get(name, 0.0))
    if any(mark in name for mark in "/.*{~") or name.startswith("pipe:") or os.path.exists(name):
        return spec_from_path(name)
    known = ", ".join(sorted(config.datasets)) or "none"
    where = config.path or f"no {CONFIG_NAME} at or above {Path.cwd()}"
    raise SpecError(
        f"unknown data set '{name}': {where} knows {known}; add [datasets.{name}], give a path, or run 'curate prepare'"
        + (nearest(name, config.datasets) or other_spelling(name))
    )


def spec_from_table(name: str, table: Mapping[str, Any], base: Path | None = None) -> DatasetSpec:
    """Check and complete one [datasets.NAME] table; relative paths count from `base`."""
    where = f"data set '{name}'"
    known = {f.name for f in fields(DatasetSpec)} - set(NOT_SETTINGS)
    unknown = sorted(set(table) - known)
    if unknown:
        raise SpecError(
            f"{where}: unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            f"{nearest(unknown[0], known)}"
        )
    for option, value in table.items():
        wanted = int if option == "rows_per_shard" else str if option in SINGLE_STRINGS else None
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise SpecError(
                f"{where}: {option} is {value!r}, expected a {'whole number' if wanted is int else 'string'}"
            )
    values: dict[str, Any] = {option: value for option, value in table.items() if option not in SINGLE_STRINGS or value}
    classes = values.get("classes")
    if isinstance(classes, int):
        if isinstance(classes, bool) or not 1 <= classes <= 10_000_000:
            raise SpecError(
                f"{where}: classes is {str(classes).lower()}, expected names, how many there are, or a file"
            )
        values["classes"] = [str(i) for i in range(classes)]
    elif isinstance(classes, str):
        values["classes"] = list(classes_of_file(name, _absolute(name, classes, base)[0]))
    for option in LISTS:
        if option in values:
            values[option] = _as_tuple(name, option, values[option])
    for option in ("train", "test", "validation"):
        values[option] = tuple(
            p for pattern in values.get(option, ()) for p in _absolute(name, pattern, base, expands=True)
        )
    if values.get("analysis"):
        values["analysis"] = _absolute(name, values["analysis"], base)[0]
    values.setdefault("format", guess_format(values["train"][0] if values["train"] else ""))
    values.setdefault("task", default_task(values))
    _check_read(name, values)
    return _with_classes(DatasetSpec(name=name, **_with_default_fields(values)))


def _check_read(name: str, values: Mapping[str, Any]) -> None:
    """Raises SpecError for a setting that nothing would read."""
    target = TARGETS.get(values["task"])
    for setting, formats, is_of in (
        ("key", ("parquet",), "names a column of Parquet files"),
        ("rows_per_shard", ("parquet", "folder"), "divides Parquet files and image folders"),
    ):
        if setting in values and values["format"] not in formats:
            raise SpecError(f"data set '{name}': {setting} {is_of}, and this is {values['format']}; drop it")
    if values["format"] == "folder" and target and target.in_folder_name and target.setting in values:
        raise SpecError(
            f"data set '{name}': {target.setting} is not read: the {target.word} of an image in a folder is the first "
            f"folder of its path; drop it"
        )
    if values.get("captions", IN_LINES) != IN_LINES:
        raise SpecError(
            f"data set '{name}': captions is {values['captions']!r}, expected 'lines' (a caption on each line of a text); a "
            "list of captions needs no setting"
        )
    if "captions" in values and target and target.has_classes:
        raise SpecError(f"data set '{name}': captions is not read where the task is {values['task']}; drop it")
    for setting in ("image", *(target.setting for target in TARGETS.values())):
        given = values.get(setting, "?")
        for named in (given,) if isinstance(given, str) else given or ("",):
            holder, path = split_field(named.removeprefix("."))
            if not holder or (":" in named and not path):
                raise SpecError(
                    f"data set '{name}': {setting} is {named!r}, expected an ending or column, or HOLDER:FIELD"
                )
    for target in TARGETS.values():
        holder, path = split_field(values.get(target.setting, ""))
        is_json = values["format"] != "parquet" and holder.lower().split(".")[-1] == "json"
        if is_json and not path and not target.has_classes:
            raise SpecError(
                f"data set '{name}': {target.setting} is '{holder}', the whole text of a JSON member; name the field that "
                f'holds the {target.word}: {target.setting} = "{holder}:FIELD"'
            )


def spec_from_path(path: str) -> DatasetSpec:
    """A data set given as a path: classification for folders, and for files of this machine of which the first has labels and
    no captions; else image-text."""
    absolute = _absolute(path, path, Path.cwd(), expands=True)
    kind = guess_format(absolute[0])
    name = path.rstrip("/").split("/")[-1].split("{")[0].split("*")[0].split(".")[0].strip("-_")
    if not name:
        name = path.rstrip("/").split("/")[-2] if "/" in path.rstrip("/") else "data"
    if not is_name(name):
        name = re.sub(r"[^\w.-]+", "-", printable(name)).strip("-.") or "data"
    task = task_of_path(kind, fields_of_first(name, absolute[0], kind))
    values = {"train": tuple(absolute), "task": task, "format": kind}
    return _with_classes(DatasetSpec(name=name, **_with_default_fields(values)))


def analysis_files(config: Config) -> dict[str, dict[str, str]]:
    """The `analysis` setting of every data set that has one, as an absolute path or URL."""
    base = config.path.parent if config.path else None
    return {
        name: {"analysis": _absolute(name, entry["analysis"], base)[0]}
        for name, entry in config.datasets.items()
        if isinstance(entry.get("analysis"), str)
    }


def _as_tuple(name: str, option: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise SpecError(f"data set '{name}': {option} is {value!r}, expected a string or a list of strings")
    if "" in values and option != "classes":  # an empty path would be the folder of curate.toml
        raise SpecError(f"data set '{name}': {option} has an empty text; leave {option} out where there is none")
    return tuple(values)


def _absolute(name: str, pattern: str, base: Path | None, *, expands: bool = False) -> list[str]:
    """Split `a::b` (but not fsspec's chained URLs, which have `::` before a protocol) and make relative paths absolute."""
    if pattern.startswith("pipe:"):
        raise SpecError(
            f"data set '{name}': '{pattern}': pipe: runs a command, which is not supported; give the URL itself "
            "(s3://, gs://, https://: pip install 'curate[s3]' or fsspec's package for it), or copy the shards first"
        )
    if "::" in pattern and "://" in pattern.split("::", 1)[1] and "://" not in pattern.split("::", 1)[0]:
        return [pattern]
    parts = [os.path.expanduser(part) if part.startswith("~") else part for part in pattern.split("::")]
    # A folder above may have braces in its name; those of the pattern are to be expanded.
    above = re.sub(r"([{}\\])", r"\\\1", str(base)) if expands and "{" in str(base) else str(base)
    return [p if base is None or "://" in p or os.path.isabs(p) else str(Path(above) / p) for p in parts]


def _with_default_fields(values: dict[str, Any]) -> dict[str, Any]:
    kind = values["format"]
    if kind != "parquet":  # an ending is compared without its dot and in lower case
        for option in {"image", *(target.setting for target in TARGETS.values())} & set(values):
            given = values[option]
            values[option] = _ending(given) if isinstance(given, str) else tuple(map(_ending, given))
    values.setdefault("image", ("image",) if kind == "parquet" else IMAGE_EXTENSIONS)
    target = TARGETS.get(values["task"])  # DatasetSpec refuses an unknown task
    if target and kind in target.fields:
        values.setdefault(target.setting, target.fields[kind])
    return values


def _ending(text: str) -> str:
    holder, path = split_field(text.removeprefix("."))
    return f"{holder.lower()}:{path}" if path else holder.lower()


def _with_classes(spec: DatasetSpec) -> DatasetSpec:
    """The same data set with the classes that its folders or files name, where it names none itself."""
    if spec.classes or not spec.target.has_classes:
        return spec
    try:
        if spec.format == "folder":
            return replace(spec, classes=classes_in_folders(spec.name, spec.train))
        if spec.format == "parquet":
            found = classes_in_files(spec.name, spec.train[0], spec.target_field)
            return replace(spec, classes=found, classes_from="metadata" if found else "")
    except (CurateError, FileNotFoundError):  # what is wrong with the shards is said where they are listed
        pass
    return spec
