"""The command line of most scripts here: what is planned and missing is run, one after another."""

from __future__ import annotations

import sys
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
    *,
    first: Callable[[list[Path]], tuple[Path, Path]] = begin,
    public: str | None = None,
) -> None:
    """Print the tables of results, or add to them `run(folder, *key)` of every planned key that they lack.

    `first` makes the folder and the results of the command line's paths, as the map's scripts do unless another is given;
    `set_up` is called with the folder before the runs. With `public`, `--public CLONE` is asked for, and this folder of the
    clone, "." for the clone itself, is where modules are looked for.
    """
    parser = argument_parser(about)
    if public is not None:
        parser.add_argument("--public", type=Path, metavar="CLONE", help="a clone of the authors' repository")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(read_results(arguments.paths[-1])))
        return
    if public is not None:
        if not arguments.public:
            parser.error("--public is needed")
        sys.path.append(str((arguments.public / public).resolve()))
    folder, results = first(arguments.paths)
    set_up(folder)
    done = {key_of(line) for line in read_results(results)}
    missing = [key for key in planned() if key not in done]
    add_results(results, ((", ".join(map(str, key)), partial(run, folder, *key)) for key in missing), arguments.seconds)
