"""`curate inspect`: a page about a score table, about two beside each other, or about what a run chose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb

from ..datasets.spec import Config, DatasetSpec, analysis_files
from ..datasets.storage import exists, full_url, join_url
from ..datasets.writing import write_errors, write_whole
from ..errors import CurateError, QueryError, SpecError, TableError
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..units import Report, counted
from .example_images import Name, Shown, shown_images
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
FOLDER, INDEX = "inspect", "index.html"
# As inspect_page.py writes a plot; it has the name of its file.
FIGURE = re.compile(r'<figure id="(\w+)" class=one>')


def inspect(what: str, other: str | None, options: InspectOptions, config: Config, report: Report) -> str:
    """Write the page about `what`, a score table or a run; with `other`, about two score tables. Returns its path.

    A page that is there already is replaced with all its plots.

    Raises SpecError for what is neither, TableError where tables and the data set, or each other, do not fit, QueryError where
    files cannot be read, WriteError.
    """
    try:
        if exists(join_url(what, "config.json")):
            if other is not None:
                raise SpecError(f"{what} is a run; give two score tables to compare them, or one run")
            page, figures, data = run_page(what, options, config)
            name = full_url(what).rstrip("/").rpartition("/")[2]
        else:
            tables = [_table(one, options) for one in (what, other) if one is not None]
            page, figures, data = _of_tables(tables, options, config, report)
            name = "-vs-".join(map(_name, tables))
        report(f"{page.title}: {page.facts.get('read', '')}")
        out = Path(options.out or Path(FOLDER, name))
        replaced = _page_in(out)
        if replaced and "<title>curate inspect" not in replaced:
            raise SpecError(
                f"{out / INDEX}: is there, and is no page of curate inspect; move it, or give another --out"
            )
        if replaced:
            report(f"{out / INDEX}: in place of the page that was there")
            figures = dict.fromkeys(FIGURE.findall(replaced), lambda: None) | figures  # its plots are not left behind
        images = {}
        if data.spec is not None and options.images:
            images = _images(page, data.spec, options, report)
        with write_errors(out):
            plots = draw_all(figures, out / "plots")
    except duckdb.Error as e:
        raise QueryError(f"{what}: {error_line(e)}") from None
    text = page_html(page, plots, images).encode()
    write_whole(out / INDEX, text)
    report(f"{counted(len(images), 'image')}, {len(text) / 1e6:.2g} MB")
    return str(out / INDEX)


def _images(page: Page, spec: DatasetSpec, options: InspectOptions, report: Report) -> dict[Name, Shown]:
    """The images of a page. Raises TableError where the user named the data set and it has none of the examples."""
    names = page.names()
    images = shown_images(spec, names, size=IMAGE_SIDE, kind="JPEG", longest_caption=LONGEST_CAPTION)
    if names and not images:
        none = f"no images: data set '{spec.name}' has none of the {len(names):,} examples, such as '{min(names)[1]}'"
        if options.dataset is not None:
            raise TableError(f"{none}; give the data set that was scored or trained on: --dataset")
        report(none)
    return images


def _page_in(folder: Path) -> str:
    """The page of an earlier `curate inspect` in this folder; empty where there is none."""
    try:
        return (folder / INDEX).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _name(table: ScoreTable) -> str:
    """`digits-reference-6080bdda` for the folder dataset=digits/reference=reference-6080bdda; else the folder's own name."""
    parts = full_url(table.folder).rsplit("/", 2)[-2:]
    return "-".join(part.partition("=")[2] for part in parts if "=" in part) or parts[-1]


def _of_tables(
    tables: list[ScoreTable], options: InspectOptions, config: Config, report: Report
) -> tuple[Page, Figures, Data]:
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
