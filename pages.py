"""The commands that write pages for people: `inspect` and `card`. As in `cli.py`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .command import CONFIG_HELP, report, takes
from .options import options_of
from .reports.inspect_options import InspectOptions

ConfigOption = Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP)]


@takes(options_of(InspectOptions))
def inspect(
    given: dict[str, Any],
    what: Annotated[
        str,
        typer.Argument(help="Look at this score table, or this run: its folder or URL, or one above that holds one."),
    ],
    other: Annotated[
        str | None, typer.Argument(help="Compare with this second score table of the same data set.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write a page that shows what is in a score table, where two of them disagree, or what a run chose.

    The page opens from disk and holds all its images. Easiest and hardest examples, likely wrong labels, captions that
    fit nothing, near duplicates, and what a filter would drop.

    Example: curate inspect scores
    """
    from .datasets.spec import load_config
    from .reports.inspect import inspect as write_page

    typer.echo(write_page(what, other, InspectOptions.of(**given), load_config(config), report))


def card(
    what: Annotated[str, typer.Argument(help="Describe this finished run, or this score table: its folder.")],
    out: Annotated[
        str | None, typer.Option(help="Write to this folder. Default: RUN/model, or the table's own folder.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="State this licence, as Hugging Face names it, such as apache-2.0.")
    ] = None,
) -> None:
    """Write a card (README.md): of a run also its model in the files of timm or open_clip; of a score table how to join it.

    timm and open_clip load the folder as local-dir:FOLDER, and Hugging Face takes it as it is.

    Example: curate card runs/learnability --license apache-2.0
    """
    from .reports.card import write_card

    typer.echo(write_card(what, out, license))
