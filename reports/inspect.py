"""`curate inspect`: a page about a score table, about two beside each other, or about what a run chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from ..datasets.spec import Config, analysis_files
from ..datasets.storage import exists, join_url
from ..datasets.writing import write_whole
from ..errors import CurateError, QueryError, SpecError
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..units import Report
from .example_images import read_images
from .inspect_options import InspectOptions
from .inspect_page import IMAGE_SIDE, Page, page_html
from .inspect_pair import pair_page
from .inspect_rows import Data, add_rows, find_data
from .inspect_run import run_page
from .inspect_scores import Figures, scores_page
from .plots import draw_all
from .sql import error_line
from .table_choice import root_of, tables_of
from .views import connect

LONGEST_CAPTION = 160


def inspect(what: str, other: str | None, options: InspectOptions, config: Config, report: Report) -> str:
    """Write the page about `what`, a score table or a run; with `other`, about two score tables. Returns its path.

    Raises SpecError for what is neither, TableError where tables do not fit the data set or each other, QueryError where
    files cannot be read, WriteError.
    """
    try:
        if exists(join_url(what, "config.json")):
            if other is not None:
                raise SpecError(f"{what} is a run; give two score tables to compare them, or one run")
            page, figures, data = run_page(what, options, config)
        else:
            page, figures, data = _of_tables(what, other, options, config, report)
        report(f"{page.title}: {page.facts.get('read', '')}")
        out = Path(options.out)
        images = {}
        if data.spec is not None and options.images:
            images = read_images(data.spec, page.names(), size=IMAGE_SIDE, kind="JPEG", longest_caption=LONGEST_CAPTION)
        plots = draw_all(figures, out / "plots")
    except duckdb.Error as e:
        raise QueryError(f"{what}: {error_line(e)}") from None
    text = page_html(page, plots, images).encode()
    write_whole(out / "index.html", text)
    report(f"{len(images):,} images, {len(text) / 1e6:.2g} MB")
    return str(out / "index.html")


def _of_tables(
    what: str, other: str | None, options: InspectOptions, config: Config, report: Report
) -> tuple[Page, Figures, Data]:
    tables = [_table(one, options) for one in (what, other) if one is not None]
    data = find_data(str(tables[0].manifest["dataset"]), options.dataset, config)
    if data.spec is None:
        report(f"no images: {data.why}")
    name = str(tables[0].manifest["dataset"])
    known = {k: v for k, v in analysis_files(config).items() if k == name}
    root = root_of(tables[0])
    with connect(scores=root, runs=root, datasets=known) as connection:
        sizes: dict[str, Any] = {"rows": options.rows, "image_bytes": options.image_bytes}
        if len(tables) == 1:
            page, figures = scores_page(add_rows(connection, "rows", tables[0], data, **sizes), options)
        else:
            page, figures = pair_page(connection, tables, data, options)
    return page, figures, data


def _table(path: str, options: InspectOptions) -> ScoreTable:
    """The table in a folder; of several below it, that of the data set which is asked for."""
    try:
        return open_scores(path)
    except CurateError:
        found = tables_of(path, options.dataset) if options.dataset else []
        if len(found) == 1:
            return found[0]
        raise
