"""curate.toml: found, read, checked for keys that nobody reads, and added to."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import tomlkit

from ..errors import SpecError, nearest
from .writing import write_whole

CONFIG_NAME = "curate.toml"
TABLES = ("datasets", "models")


@dataclass(frozen=True)
class Config:
    """The parsed curate.toml: `datasets` and `models` as written, `path` None where there is no file.

    `hold_out` is not of the file: the share of a data set's train that a search measures on, by the data set's name.
    """

    path: Path | None
    datasets: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    hold_out: Mapping[str, float] = field(default_factory=dict)


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read `path`, or the nearest curate.toml at or above the working folder. No file gives an empty Config.

    Raises SpecError where it cannot be read, is not valid TOML, or has a table or key that is none of ours.
    """
    found = Path(path).expanduser() if path else _search_upward(Path.cwd())
    if found is None:
        return Config(None, {}, {})
    content = _parsed(found, _text_of(found))
    for key in content:
        if key not in TABLES:
            raise SpecError(
                f"{found}: unknown {'table' if isinstance(content[key], dict) else 'key'} '{key}'"
                f"{nearest(key, TABLES)}; known are [datasets.NAME] and [models.NAME]"
            )
    for room in TABLES:
        entries = content.get(room, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise SpecError(f"{found}: [{room}] must hold tables such as [{room}.NAME]")
    return Config(found.resolve(), content.get("datasets", {}), content.get("models", {}))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    """Raises SpecError where it is not valid TOML."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise SpecError(f"{path}: not valid TOML: {e}") from None


def _text_of(path: Path) -> str:
    """The text, without the mark that some editors put before it."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; give --config an existing curate.toml") from None
    except OSError as e:
        raise SpecError(f"{path}: cannot be read ({e.strerror}); give --config a readable curate.toml") from None
    except UnicodeDecodeError as e:
        raise SpecError(f"{path}: not valid TOML: {e}; save it as UTF-8") from None


def _search_upward(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        if (parent / CONFIG_NAME).is_file():
            return parent / CONFIG_NAME
    return None


def add_dataset(config_path: Path, name: str, table: Mapping[str, Any]) -> None:
    """Write (or replace) [datasets.NAME] in `config_path`. All else in it stays, comments too."""
    _add_entry(config_path, "datasets", name, table)


def add_model(config_path: Path, name: str, table: Mapping[str, Any]) -> None:
    """Write (or replace) [models.NAME] in `config_path`. All else in it stays, comments too."""
    _add_entry(config_path, "models", name, table)


def _add_entry(config_path: Path, room: str, name: str, table: Mapping[str, Any]) -> None:
    text = _text_of(config_path) if config_path.exists() else ""
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
