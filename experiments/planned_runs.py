"""The command line of scripts that share the map's folder: what is planned and missing is run, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from curated_map import add_results, argument_parser, begin, read_results

Line = dict[str, Any]


def run_planned(
    about: str | None,
    tables: Callable[[list[Line]], str],
    planned: Callable[[], Iterable[tuple[Any, ...]]],
    key_of: Callable[[Line], tuple[Any, ...]],
    run: Callable[..., Line],
    set_up: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Print the tables of results, or add to them `run(folder, *key)` of every planned key that they lack. `set_up` is called
    with the folder before."""
    arguments = argument_parser(about).parse_args()
    if arguments.table:
        print(tables(read_results(arguments.paths[-1])))
        return
    folder, results = begin(arguments.paths)
    set_up(folder)
    done = {key_of(line) for line in read_results(results)}
    missing = [key for key in planned() if key not in done]
    add_results(results, ((", ".join(map(str, key)), partial(run, folder, *key)) for key in missing), arguments.seconds)
