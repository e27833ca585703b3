"""Typer's side of the options: the parameters of a command are made from the fields of an options class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from .options import Option, flag, options_of
from .progress import Screen

CONFIG_HELP = "Read data sets and models from this file. Default: the nearest curate.toml, from here upward."
report = Screen()
"""Progress, to standard error, so that results can be piped."""


def without(options: type, *names: str) -> dict[str, Option]:
    """The options of a class but for these."""
    return {name: option for name, option in options_of(options).items() if name not in names}


def takes(
    *sources: Mapping[str, Option], also: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Any]:
    """Add the options of all sources to a command, with a second spelling for those in `also`.

    The command gets the values of each source as a dictionary, in this order, before its own parameters.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(sources) :]
        made = [_parameter(o, (also or {}).get(o.name)) for source in sources for o in source.values()]
        parameters = [*made, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]

        def run(**given: Any) -> None:
            values = [{name: given.pop(name) for name in source} for source in sources]
            command(*values, **given)

        run.__name__, run.__doc__ = command.__name__, _unwrapped(command.__doc__ or "")
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _unwrapped(text: str) -> str:
    """Each paragraph in one line, for the terminal to wrap."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _parameter(option: Option, also: str | None) -> inspect.Parameter:
    kind, default, text = option.kind, option.default, option.text
    if text is not None or kind not in (int, float, bool, str):
        kind = str
    if text is not None and not option.required and default is not None:
        default = text.show(default)
    declared = typer.Option(
        *([flag(option.name), also] if also else []),
        help=option.help.replace("[", r"\["),  # Rich takes a bracket for markup
        metavar=text.metavar if text else "|".join(option.values) or None,
        parser=(lambda given: text.parse(given, flag(option.name))) if text else None,
        show_default=default is not False,
        rich_help_panel=option.concern.capitalize() or None,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.required else default,
        annotation=Annotated[kind | None if default is None else kind, declared],
    )


def reference_page(cli: typer.Typer) -> str:
    """Markdown: every command with its options, as `--help` has them."""
    parts = ["# Commands\n\nMade from the options by `make docs`; do not edit."]
    commands = typer.main.get_command(cli).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        if command.hidden:
            continue
        *texts, example = _unwrapped(command.help).split("\n\n")
        parts.append(f"## curate {name}\n\n" + "\n\n".join(texts))
        parts.append(f"```\n{example.removeprefix('Example: ')}\n```")
        panels: dict[str, list[str]] = {}
        for parameter in command.params:
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(_row(parameter))
        for panel, rows in panels.items():
            parts.append("\n".join([f"| {panel or 'option'} | what it does | default |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _row(parameter: Any) -> str:
    spellings = [*parameter.opts, *parameter.secondary_opts]
    if not spellings[0].startswith("-") and parameter.metavar:
        spellings = [parameter.metavar]
    spelled = ", ".join(f"`{spelling}`" for spelling in spellings)
    help = (parameter.help or "").replace(r"\[", "[").replace("\n\n", "<br>").replace("|", r"\|")
    values = f" `{parameter.metavar}`" if "|" in (parameter.metavar or "") else ""
    default = parameter.default
    shown = "required" if parameter.required else "" if default in (None, False, "") else f"`{default}`"
    return f"| {spelled}{values.replace('|', '` `')} | {help} | {shown} |"
