"""Options once: one field of a frozen dataclass is one option, and the string below the field is its help text.

A class may nest its options by concern, one dataclass for each. Every option's name is there once, so that all of them can
be given flat. `command.py` makes a command line of them.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from .errors import SpecError
from .units import format_bytes, parse_bytes, parse_flops, parse_multiple, parse_numbers, parse_ratio, parse_share


@dataclass(frozen=True)
class Text:
    """How people write a value. `parse` takes the text and the option's spelling, and raises a CurateError; `show` is its
    inverse, for defaults."""

    parse: Callable[[str, str], Any]
    show: Callable[[Any], str]
    metavar: str


@dataclass(frozen=True)
class Values:
    """What the values of an option mean, by value: part of its help."""

    meaning: Mapping[str, str]


Flops = Annotated[float, Text(lambda text, _: parse_flops(text), "{:g}".format, "<flops>")]
Bytes = Annotated[int, Text(parse_bytes, format_bytes, "<bytes>")]
Share = Annotated[float, Text(parse_share, lambda share: f"{share * 100:g}%", "<share>")]
Ratio = Annotated[float, Text(lambda text, _: parse_ratio(text), "{:g}".format, "<ratio>")]
Numbers = Annotated[tuple[float, ...], Text(parse_numbers, lambda all: ",".join(f"{x:g}" for x in all), "<numbers>")]
Multiple = Annotated[float, Text(parse_multiple, "{:g}x".format, "<multiple>")]
Multiples = Annotated[
    tuple[float, ...], Text(parse_numbers, lambda all: ",".join(f"{x:g}x" for x in all), "<multiples>")
]


@dataclass(frozen=True)
class Option:
    """One option. `kind` is its type without None, `concern` the field that holds it (empty where the class itself does).

    `text` is there where people write it otherwise than Python does, `values` where only some are known.
    """

    name: str
    kind: Any
    default: Any
    help: str
    concern: str = ""
    text: Text | None = None
    values: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is MISSING


class Concern:
    """Base of a frozen dataclass that holds the options of one concern, for another class to nest."""


class Options:
    """Base of a frozen dataclass whose options can be given flat, whatever concern holds them."""

    @classmethod
    def of(cls, **flat: Any) -> Self:
        """Built of options by their names. Raises SpecError for an unknown name, and whatever the class checks."""
        own, inner = _grouped(cls, flat)
        return cls(**own, **{concern: kind(**inner.get(concern, {})) for concern, kind in _concerns(cls).items()})

    def but(self, **flat: Any) -> Self:
        """The same with other values, by their names. Raises as `of` does."""
        own, inner = _grouped(type(self), flat)
        changed = {concern: replace(getattr(self, concern), **values) for concern, values in inner.items()}
        return replace(self, **own, **changed)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """All options, flat."""
        all = options_of(type(self)).values()
        return {o.name: getattr(getattr(self, o.concern) if o.concern else self, o.name) for o in all}


def options_of(cls: Any) -> dict[str, Option]:
    """The options of a dataclass and of its concerns, by name, in their order. Other `Options` in it keep theirs."""
    return _options_of(cls)


@cache
def _options_of(cls: Any) -> dict[str, Option]:
    concerns = _concerns(cls)
    found: dict[str, Option] = {}
    for name, option in _fields(cls).items():
        for inner in _fields(concerns[name]).values() if name in concerns else (option,):
            assert inner.name not in found, f"{cls.__name__} has two options '{inner.name}'"
            if not _is(inner.kind, Options):
                found[inner.name] = replace(inner, concern=name if name in concerns else "")
    return found


def _is(kind: Any, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _concerns(cls: type) -> dict[str, type]:
    return {option.name: option.kind for option in _fields(cls).values() if _is(option.kind, Concern)}


@cache
def _fields(cls: Any) -> Mapping[str, Option]:
    """Every field as an option."""
    texts, names = docs_of(cls), vars(sys.modules[cls.__module__])
    found = {}
    for field in fields(cls):
        try:
            kind = eval(field.type, names) if isinstance(field.type, str) else field.type
        except NameError:  # a type that is there for type checkers alone: the command line takes a name
            kind = str
        kind, known = _unwrapped(kind)
        text = next((k for k in known if isinstance(k, Text)), None)
        meanings = [
            f"{value}: {meaning}." for k in known if isinstance(k, Values) for value, meaning in k.meaning.items()
        ]
        values = get_args(kind) if get_origin(kind) is Literal else ()
        help = "\n\n".join([texts.get(field.name, ""), *meanings])
        found[field.name] = Option(field.name, kind, field.default, help, text=text, values=values)
    return found


def _unwrapped(kind: Any) -> tuple[Any, Collection[Any]]:
    """A type without None and without what it is annotated with, and the latter."""
    if get_origin(kind) is Annotated:
        bare, *known = get_args(kind)
        kind, others = _unwrapped(bare)
        return kind, (*known, *others)
    inner = [k for k in get_args(kind) if k is not types.NoneType]
    if get_origin(kind) in (Union, types.UnionType) and len(inner) == 1:
        return _unwrapped(inner[0])
    return kind, ()


def docs_of(cls: type) -> dict[str, str]:
    """The string below each field, in one line, by the field's name; none where the source is not installed."""
    try:
        module = _source(cls.__module__)
    except (OSError, TypeError):
        return {}
    bodies = (node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(next(bodies, []))
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


@cache
def _source(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))


def _grouped(cls: type, flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What `flat` sets: the class's own fields, and those of each concern."""
    known = options_of(cls)
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise SpecError(f"there is no option '{name}'" + (f"; the nearest is '{near[0]}'" if near else ""))
        (inner.setdefault(known[name].concern, {}) if known[name].concern else own)[name] = value
    return own, inner


def flag(option: str) -> str:
    """How the command line spells an option: `--batch-size`."""
    return "--" + option.replace("_", "-")


def check_least(options: Any, least: float, *names: str) -> None:
    """Raises SpecError where one of the options is below `least`; None is left alone."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise SpecError(f"{flag(name)} is {value}, expected at least {least}")


def refuse_with(name: str, reasons: Mapping[str, bool]) -> None:
    """Raises SpecError for the first of `reasons` that is so: what the option called `name` cannot be combined with."""
    for what, is_so in reasons.items():
        if is_so:
            raise SpecError(f"{flag(name)} cannot be combined with {what}; leave one of them out")


def check_local(options: Any, name: str) -> None:
    """Raises SpecError where an option that names a folder of this machine is a URL."""
    refuse_url(getattr(options, name), flag(name))


def refuse_url(folder: Any, told: str) -> None:
    """Raises SpecError where `folder` is a URL. A path that was made of a URL has lost one of its slashes."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise SpecError(
            f"{told} is '{folder}', a URL; it must be a folder of this machine: copy it to the store when it is done"
        )


def check_choice(options: Any, name: str) -> None:
    """Raises SpecError where an option is none of the values that its type names; None is left alone."""
    value, values = getattr(options, name), options_of(type(options))[name].values
    if value is not None and value not in values:
        raise SpecError(f"{flag(name)} is '{value}', expected {', '.join(values[:-1])} or {values[-1]}")
