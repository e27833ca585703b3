"""Makes docs/api.md, and the table of policies in docs/concepts.md, from the code itself. `make docs` runs it."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import curate
from curate.options import Options

DOCS = Path(__file__).parent
WIDTH = 100
# Every name of `curate.__all__`, by what people use it for.
GROUPS = {
    "In your own loop": (
        "SuperBatches SuperBatch Mix Selector Selection SubBatches SubBatch OnlineModel Ledger SelectionLog Geometry "
        "Group"
    ).split(),
    "The score table": ["open_scores", "ScoreTable", "keep_best", "Kept"],
    "Policies, and selection as functions": ["Policy", "POLICIES", "Losses", "Pairs", "select", "select_jointly"],
    "Whole runs": ["train", "RunOptions", "score_reference", "ScoreOptions"],
    "Errors": ["CurateError"],
}
PUBLIC = {name for names in GROUPS.values() for name in names}
NO_DOCSTRING = {"POLICIES": "The known policies, `dict[str, Policy]`: see [concepts](concepts.md#policies)."}
MARKS = ("<!-- policies: made by `make docs` -->", "<!-- /policies -->")
USES = {"none": "", "loss": "its loss", "embeddings": "its embeddings"}
SCORERS = {
    "none": "",
    "learner": "the learner",
    "model": "the online model",
    "either": "the online model or the learner",
    "past": "nobody: the learner's past losses",
}


def api_page() -> str:
    """Markdown: every public name with its signature and docstring."""
    parts = [
        "# Python\n\nMade from signatures and docstrings by `make docs`; do not edit.",
        "`import curate` gives these names, and imports each when it is first used. How they fit together is in "
        "[embedding](embedding.md).",
    ]
    for group, names in GROUPS.items():
        parts.append(f"## {group}")
        parts += [part for name in names for part in _entry(name, getattr(curate, name))]
    return "\n\n".join(parts) + "\n"


def policies_table() -> str:
    """Markdown: a row for each policy, from its own row in `POLICIES`."""
    rows = [
        f"| `{p.name}` | {p.help} | {SCORERS[p.online]} | {USES[p.reference]} | {', '.join(p.tasks) or 'all'} |"
        for p in curate.POLICIES.values()
    ]
    head = "| policy | what it chooses by | what scores the super-batch | what it reads from the table | tasks |"
    return "\n".join([head, "| --- | --- | --- | --- | --- |", *rows])


def with_policies(page: str) -> str:
    """The page with its table of policies made anew between the two marks."""
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{policies_table()}\n{MARKS[1]}{after}"


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"### {name}"
    if name in NO_DOCSTRING:
        yield NO_DOCSTRING[name]
        return
    if inspect.isclass(thing) and issubclass(thing, Exception):
        yield inspect.cleandoc(sys.modules[thing.__module__].__doc__ or "")
        return
    yield f"```python\n{_signature(name, thing)}\n```"
    yield inspect.cleandoc(thing.__doc__)
    if not inspect.isclass(thing):
        return
    if issubclass(thing, Options):
        yield "Its options are those of the command line, with `_` for `-`: see [commands](cli.md)."
    members = [_member(method, member) for method, member in _members(thing)]
    if members:
        yield "\n".join(members)
    yield from (f"It also has what `{base.__name__}` has." for base in thing.__bases__ if base.__name__ in PUBLIC)


def _members(thing: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class and of its bases in this package that have no entry of their own."""
    taken = {f.name for f in fields(thing)} if is_dataclass(thing) else set()
    for owner in thing.__mro__:
        if not owner.__module__.startswith("curate.") or (owner is not thing and owner.__name__ in PUBLIC):
            continue
        for name, member in vars(owner).items():
            special = name in ("__call__", "__iter__")
            if name in taken or (name.startswith("_") and not special) or not _is_documented(member):
                continue
            taken.add(name)
            yield name, member


def _is_documented(member: Any) -> bool:
    kinds = (property, staticmethod, classmethod)
    return (isinstance(member, kinds) or inspect.isfunction(member)) and bool(member.__doc__)


def _member(name: str, member: Any) -> str:
    """An item of a list: the signature, and what the docstring says."""
    if isinstance(member, property):
        assert member.fget is not None
        shown = f".{name}: {member.fget.__annotations__['return']}"
    else:
        called = {"__call__": "", "__iter__": "iter"}.get(name, f".{name}")
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        shown = _signature(called, function, bound=not isinstance(member, staticmethod), width=0)
    return textwrap.indent(f"`{shown}`\n\n{inspect.cleandoc(member.__doc__)}", "  ").replace("  ", "- ", 1)


def _signature(name: str, thing: Any, *, bound: bool = False, width: int = WIDTH) -> str:
    """The signature as the code has it, a parameter a line where it is wider than `width` (0: always one line).

    Annotations are text: no module of ours evaluates them.
    """
    signature = inspect.signature(thing)
    parameters = list(signature.parameters.values())[bound:]
    parts: list[str] = []
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        parts.append(_parameter(parameter))
    returns = "" if inspect.isclass(thing) else _annotation(signature.return_annotation, " -> {}")
    line = f"{name}({', '.join(parts)}){returns}"
    if not width or len(line) <= width:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returns}"])


def _parameter(parameter: inspect.Parameter) -> str:
    stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) or "**" * (parameter.kind is parameter.VAR_KEYWORD)
    text: str = stars + parameter.name + _annotation(parameter.annotation, ": {}")
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    plain = default is None or isinstance(default, bool | int | float | str | tuple)
    shown = repr(default) if plain else getattr(default, "__name__", "...")
    return f"{text} = {'...' if shown == '<factory>' or shown == '<lambda>' else shown}"


def _annotation(annotation: Any, form: str) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    return form.format(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def main() -> None:
    (DOCS / "api.md").write_text(api_page(), encoding="utf-8")
    concepts = DOCS / "concepts.md"
    concepts.write_text(with_policies(concepts.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
