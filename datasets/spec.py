"""What a data set is: an entry of curate.toml, or a path in its place."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import tomlkit

from ..errors import SpecError
from .targets import TARGETS, Target, default_task, task_of_path
from .writing import write_whole

CONFIG_NAME = "curate.toml"
FORMATS = ("webdataset", "parquet", "folder")
SINGLE_STRINGS = ("task", "format", "label", "text", "key", "analysis", "description")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff")

Format = Literal["webdataset", "parquet", "folder"]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One data set. Patterns may hold braces, globs and `a::b`, and any fsspec URL.

    `image`, `label` and `text` name tar extensions or Parquet columns. An image-text data set may also have a
    `label` and `classes`: zero-shot classification is then evaluated on its test split with `templates`.
    `analysis` points at Parquet files with columns (shard, key, ...) that only reports read, never training. Settings are
    searched on `validation`, a split of its own. With `hold_out` above 0 this share of train, found by a hash of shard and
    key, is the test split and is not trained on.
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

    def __post_init__(self) -> None:
        where = f"data set '{self.name}'"
        if self.task not in TARGETS:
            raise SpecError(f"{where}: task is '{self.task}', expected one of {', '.join(TARGETS)}")
        if self.format not in FORMATS:
            raise SpecError(f"{where}: format is '{self.format}', expected one of {', '.join(FORMATS)}")
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

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the settings that say what an example is, not of where the shards are or how many."""
        meaning = {
            "task": self.task,
            "format": self.format,
            "image": self.image,
            "target": self.target_field,
            "key": self.key,
            "classes": self.classes if self.target.has_classes else (),
            "rows_per_shard": self.rows_per_shard if self.format == "parquet" else 0,
        }
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. `validation` and `hold_out` are left out where they are not set, as in older manifests."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v or k not in ("validation", "hold_out")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Config:
    """The parsed curate.toml: `datasets` and `models` as written, `path` None where there is no file."""

    path: Path | None
    datasets: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read `path`, or the nearest curate.toml at or above the working folder. No file gives an empty Config."""
    found = Path(path) if path else _search_upward(Path.cwd())
    if found is None:
        return Config(None, {}, {})
    try:
        content = tomllib.loads(found.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{found}: no such file; give --config an existing curate.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise SpecError(f"{found}: not valid TOML: {e}") from None
    for room in ("datasets", "models"):
        entries = content.get(room, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise SpecError(f"{found}: [{room}] must hold tables such as [{room}.NAME]")
    return Config(found.resolve(), content.get("datasets", {}), content.get("models", {}))


def _search_upward(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        if (parent / CONFIG_NAME).is_file():
            return parent / CONFIG_NAME
    return None


def find_dataset(name: str, config: Config | None = None) -> DatasetSpec:
    """Resolve a name of curate.toml, or a path/URL pattern (its task follows from its format's usual fields)."""
    config = config if config is not None else load_config()
    if name in config.datasets:
        assert config.path is not None
        return spec_from_table(name, config.datasets[name], base=config.path.parent)
    if any(mark in name for mark in "/.*{") or os.path.exists(name):
        return spec_from_path(name)
    known = ", ".join(sorted(config.datasets)) or "none"
    where = config.path or f"no {CONFIG_NAME} at or above {Path.cwd()}"
    raise SpecError(
        f"unknown data set '{name}': {where} knows {known}; add [datasets.{name}], give a path, or run 'curate prepare'"
    )


def spec_from_table(name: str, table: Mapping[str, Any], base: Path | None = None) -> DatasetSpec:
    """Check and complete one [datasets.NAME] table; relative paths count from `base`."""
    known = {f.name for f in fields(DatasetSpec)} - {"name"}
    unknown = set(table) - known
    if unknown:
        raise SpecError(
            f"data set '{name}': unknown setting {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}"
        )
    values: dict[str, Any] = dict(table)
    if isinstance(values.get("classes"), int):
        values["classes"] = [str(i) for i in range(values["classes"])]
    for option in ("train", "test", "validation", "image", "classes", "templates"):
        if option in values:
            values[option] = _as_tuple(name, option, values[option])
    for option, value in values.items():
        wanted = {"rows_per_shard": int, **dict.fromkeys(SINGLE_STRINGS, str)}.get(option)
        if wanted and not isinstance(value, wanted):
            raise SpecError(f"data set '{name}': {option} is {value!r}, expected a {wanted.__name__}")
    values["train"] = tuple(p for pattern in values.get("train", ()) for p in _absolute(pattern, base))
    for split in ("test", "validation"):
        values[split] = tuple(p for pattern in values.get(split, ()) for p in _absolute(pattern, base))
    if values.get("analysis"):
        values["analysis"] = _absolute(values["analysis"], base)[0]
    values.setdefault("format", guess_format(values["train"][0] if values["train"] else ""))
    values.setdefault("task", default_task(values))
    return DatasetSpec(name=name, **_with_default_fields(values))


def spec_from_path(path: str) -> DatasetSpec:
    """A data set given as a path: image-text where the shards may hold captions, classification for folders."""
    kind = guess_format(path)
    name = path.rstrip("/").split("/")[-1].split("{")[0].split("*")[0].split(".")[0].strip("-_")
    if not name:
        name = path.rstrip("/").split("/")[-2] if "/" in path.rstrip("/") else "data"
    values = {"train": tuple(_absolute(path, Path.cwd())), "task": task_of_path(kind), "format": kind}
    return DatasetSpec(name=name, **_with_default_fields(values))


def guess_format(pattern: str) -> Format:
    """From the ending: .tar (or .tar.gz) is webdataset, .parquet parquet, anything else an image folder."""
    for plain in (pattern.rstrip("}"), pattern.split("?")[0].rstrip("}")):  # a wildcard, or a URL's query
        if plain.endswith((".tar", ".tar.gz", ".tgz")):
            return "webdataset"
        if plain.endswith((".parquet", ".pq")):
            return "parquet"
    return "folder"


def analysis_files(config: Config) -> dict[str, dict[str, str]]:
    """The `analysis` setting of every data set that has one, as an absolute path or URL."""
    base = config.path.parent if config.path else None
    return {
        name: {"analysis": _absolute(entry["analysis"], base)[0]}
        for name, entry in config.datasets.items()
        if isinstance(entry.get("analysis"), str)
    }


def add_dataset(config_path: Path, name: str, table: Mapping[str, Any]) -> None:
    """Write (or replace) [datasets.NAME] in `config_path`. All else in it stays, comments too."""
    _add_entry(config_path, "datasets", name, table)


def add_model(config_path: Path, name: str, table: Mapping[str, Any]) -> None:
    """Write (or replace) [models.NAME] in `config_path`. All else in it stays, comments too."""
    _add_entry(config_path, "models", name, table)


def _add_entry(config_path: Path, room: str, name: str, table: Mapping[str, Any]) -> None:
    text = config_path.read_text(encoding="utf-8") if config_path.exists() else ""
    try:
        document = tomlkit.parse(text)
    except tomlkit.exceptions.TOMLKitError as e:
        raise SpecError(f"{config_path}: not valid TOML: {e}") from None
    if room not in document:
        document.add(room, tomlkit.table(is_super_table=True))
    entry = tomlkit.table()
    for key, value in table.items():
        entry.add(key, list(value) if isinstance(value, tuple) else value)
    cast(Any, document[room])[name] = entry
    write_whole(config_path, tomlkit.dumps(document).encode())


def _as_tuple(name: str, option: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise SpecError(f"data set '{name}': {option} is {value!r}, expected a string or a list of strings")


def _absolute(pattern: str, base: Path | None) -> list[str]:
    """Split `a::b` (but not fsspec's chained URLs, which have `::` before a protocol) and make relative paths absolute."""
    if "::" in pattern and "://" in pattern.split("::", 1)[1] and "://" not in pattern.split("::", 1)[0]:
        return [pattern]
    parts = pattern.split("::")
    return [p if base is None or "://" in p or os.path.isabs(p) else str(base / p) for p in parts]


def _with_default_fields(values: dict[str, Any]) -> dict[str, Any]:
    kind = values["format"]
    values.setdefault("image", ("image",) if kind == "parquet" else IMAGE_EXTENSIONS)
    target = TARGETS.get(values["task"])  # DatasetSpec refuses an unknown task
    if target and kind in target.fields:
        values.setdefault(target.setting, target.fields[kind])
    return values
