"""Options once: one field of a frozen dataclass is one option, and the string below the field is its help text.

A class may nest its options by concern, one dataclass for each. Every option's name is there once, so that all of them can
be given flat.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any, Self, get_type_hints

from .errors import SpecError


@dataclass(frozen=True)
class Option:
    """One option. `kind` is its type, `concern` the field that holds it (empty where the class itself does)."""

    name: str
    kind: Any
    default: Any
    help: str
    concern: str

    @property
    def required(self) -> bool:
        return self.default is MISSING


class Options:
    """Base of a frozen dataclass whose options can be given flat, whatever concern holds them."""

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Every option by its name, in the order of the fields."""
        return options_of(cls)  # type: ignore[arg-type]

    @classmethod
    def of(cls, **flat: Any) -> Self:
        """Built of options by their names. Raises SpecError for an unknown name, and whatever the class checks."""
        return cls(**_grouped(cls, flat, None))

    def but(self, **flat: Any) -> Self:
        """The same with other values, by their names. Raises as `of` does."""
        return replace(self, **_grouped(type(self), flat, self))  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """All options, flat."""
        return {
            o.name: getattr(getattr(self, o.concern) if o.concern else self, o.name) for o in self.options().values()
        }


@cache
def options_of(cls: type) -> Mapping[str, Option]:
    """The options of a dataclass, those of the concerns that it nests among them."""
    found: dict[str, Option] = {}
    for name, (kind, default, text) in _fields(cls).items():
        nested = {"": {name: (kind, default, text)}} if not _is_concern(kind) else {name: _fields(kind)}
        for concern, inner in nested.items():
            for option, (inner_kind, inner_default, inner_text) in inner.items():
                assert option not in found, f"{cls.__name__} has two options '{option}'"
                found[option] = Option(option, inner_kind, inner_default, inner_text, concern)
    return found


def _is_concern(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _fields(cls: type) -> dict[str, tuple[Any, Any, str]]:
    """Type, default and help of every field, by name."""
    kinds, texts = get_type_hints(cls, include_extras=True), docs_of(cls)
    return {f.name: (kinds[f.name], f.default, texts.get(f.name, "")) for f in fields(cls)}


def docs_of(cls: type) -> dict[str, str]:
    """The string below each field, in one line, by the field's name; none where the source is not installed."""
    try:
        module = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    except (OSError, TypeError):
        return {}
    body = next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _grouped(cls: type, flat: Mapping[str, Any], old: Any) -> dict[str, Any]:
    """The fields of `cls` that `flat` sets: its own, and every concern anew (with `old`, those that change)."""
    known = options_of(cls)
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise SpecError(f"there is no option '{name}'" + (f"; the nearest is '{near[0]}'" if near else ""))
        (inner.setdefault(known[name].concern, {}) if known[name].concern else own)[name] = value
    if old is not None:
        return own | {concern: replace(getattr(old, concern), **values) for concern, values in inner.items()}
    concerns = {name: kind for name, (kind, _, _) in _fields(cls).items() if _is_concern(kind)}
    return own | {concern: kind(**inner.get(concern, {})) for concern, kind in concerns.items()}


def flag(option: str) -> str:
    """How the command line spells an option: `--batch-size`."""
    return "--" + option.replace("_", "-")


def check_least(options: Any, least: float, *names: str) -> None:
    """Raises SpecError where one of the options is below `least`; None is left alone."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise SpecError(f"{flag(name)} is {value}, expected at least {least}")


def check_choice(options: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises SpecError where an option is none of `choices`; None is left alone."""
    value = getattr(options, name)
    if value is not None and value not in choices:
        *first, last = choices
        raise SpecError(f"{flag(name)} is '{value}', expected {', '.join(first)} or {last}")
