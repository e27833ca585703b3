"""Typer's side of the options: the parameters of a command are made from the fields of an options class."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from .errors import SpecError
from .options import Option, flag, options_of
from .progress import Screen

CONFIG_HELP = "Read data sets and models from this file. Default: the nearest curate.toml, from here upward."
report = Screen()
"""Progress, to standard error, so that results can be piped."""


F = TypeVar("F", bound=Callable[..., Any])
INDENT, COLUMN, WIDEST = 2, 26, 100
"""Of a page of help: the spaces before an option, the column of its help, and the most characters of a line."""


class Commands(typer.Typer):
    """A Typer whose pages of help lose nothing on a terminal of 80 columns. Rich's tables cut the options' names there."""

    def __init__(self, **settings: Any) -> None:
        context = {"help_option_names": ["-h", "--help"], "max_content_width": WIDEST}
        super().__init__(cls=_Group, context_settings=context, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        return super().command(name, cls=_Command, context_settings=self.info.context_settings, **settings)


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Raises SpecError for an empty text, which is most often a variable of the shell that is not set."""
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            if ctx.params.get(parameter.name) == "" and not ctx.resilient_parsing:
                told = parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
                raise SpecError(f"{told} is empty; give a value" + ("" if parameter.required else ", or leave it out"))
        return rest

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_panels(self, ctx, formatter)


class _Group(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if not args and not ctx.resilient_parsing:  # as the shell asks for what could follow
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_panels(self, ctx, formatter)
        shown = [command for command in self.commands.values() if not command.hidden]
        _write_panel("Commands", [(c.name or "", _unwrapped(c.help or "").split("\n\n")[0]) for c in shown], formatter)


def _write_text(command: Any, formatter: Any) -> None:
    for paragraph in _unwrapped(command.help or "").split("\n\n"):
        formatter.write("\n" + "".join(_lines(paragraph, INDENT, formatter.width)))


def _write_panels(command: Any, ctx: Any, formatter: Any) -> None:
    """The options by their concern, those of no concern first."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        kind = "Options" if parameter.param_type_name == "option" else "Arguments"
        record = parameter.get_help_record(ctx)
        if record is not None:
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
    for panel, rows in panels.items():
        _write_panel(panel, rows, formatter)


def _write_panel(panel: str, rows: Iterable[tuple[str, str]], formatter: Any) -> None:
    """A title and its rows: what is typed, and beside it, or below where it is long, what that does."""
    for i, (spelled, help) in enumerate(rows):
        told = [line for part in help.split("\n\n") for line in _lines(part, COLUMN, formatter.width)]
        title = f"\n{panel}:\n" if i == 0 else ""
        first = "".join(_lines(spelled, INDENT, formatter.width))
        if told and len(first) < COLUMN:
            first = first.rstrip("\n").ljust(COLUMN) + told.pop(0).lstrip()
        formatter.write("".join([title, first, *told]))


def _lines(text: str, indent: int, width: int) -> list[str]:
    """A paragraph in lines, indented. No word is cut, nor broken at a hyphen: it may be an option to copy."""
    margin = " " * indent
    wrapped = textwrap.wrap(
        *(text, width),
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line + "\n" for line in wrapped]


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
        help=option.help,
        metavar=text.metavar if text else "|".join(option.values) or _METAVARS.get(kind),
        parser=(lambda given: text.parse(given, flag(option.name))) if text else _number(kind, flag(option.name)),
        show_default=default is not False,
        rich_help_panel=option.concern.capitalize() or None,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.required else default,
        annotation=Annotated[kind | None if default is None else kind, declared],
    )


_METAVARS = {int: "INTEGER", float: "FLOAT"}


def _number(kind: Any, spelled: str) -> Callable[[Any], Any] | None:
    """What reads an option that is a number: typer's own message does not show what was given."""
    if kind not in _METAVARS:
        return None

    def parse(given: Any) -> Any:
        try:
            return kind(given)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise SpecError(f"{spelled} is '{given}', expected {expected}") from None

    return parse


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
    help = (parameter.help or "").replace("\n\n", "<br>").replace("|", r"\|")
    values = f" `{parameter.metavar}`" if "|" in (parameter.metavar or "") else ""
    default = parameter.default
    shown = "required" if parameter.required else "" if default in (None, False, "") else f"`{default}`"
    return f"| {spelled}{values.replace('|', '` `')} | {help} | {shown} |"
