"""What a page says of a run: what it chose over time, by class and by source, and what it never chose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from ..datasets.spec import Config, analysis_files
from ..datasets.storage import join_url, read_bytes
from ..errors import CurateError, RunError
from ..scoring.tables.lookup import open_scores
from ..scoring.tables.schema import ENDING
from ..units import accuracy, counted
from .inspect_options import InspectOptions
from .inspect_page import Cell, Page, Part, Plot, Section, Sheet, Table, Tile
from .inspect_plots import over_time
from .inspect_rows import Data, both_ends, find_data, imaged_shards, shuffled
from .inspect_scores import CLEAN, MOST_GROUPS, Figures
from .sql import parquet_sql
from .views import SCORES_COLUMNS, SELECTIONS_COLUMNS, connect, open_root

BINS = 20
LINES = 8
LOSSES = {"reference_loss": "reference", "online_loss": "online model"}


def run_page(run: str, options: InspectOptions, config: Config) -> tuple[Page, Figures, Data]:
    """The page of a run that recorded selections. Raises RunError where it recorded none."""
    run = run.rstrip("/")
    about = _document(run, "config.json")
    if not isinstance(about.get("dataset"), str):
        raise RunError(f"{run}/config.json: is no run's; give the folder of a run, or of a score table")
    name = str(about["dataset"])
    data = find_data(name, options.dataset, config)
    known = {k: v for k, v in analysis_files(config).items() if k == name}
    nothing = join_url(run, "none")
    with connect(scores=nothing, runs=nothing, datasets=known) as connection:
        pattern = f"{open_root(connection, run)}/selections/*.parquet"
        ((files,),) = connection.execute("SELECT count(*) FROM glob(?)", [pattern]).fetchall()
        if not files:
            raise RunError(f"{run}: recorded no selections; give a run of a policy that selects")
        read = _fill(connection, run, pattern, options, data)
        _add_labels(connection, run, name)
        page, figures = _page(connection, run, about, data, read, options)
    return page, figures, data


def _document(run: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(join_url(run, name)))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _fill(connection: duckdb.DuckDBPyConnection, run: str, pattern: str, options: InspectOptions, data: Data) -> str:
    """The table `chosen`; of a long run only every n-th recorded step. Returns what was read."""
    connection.execute(f"CREATE VIEW recorded AS {parquet_sql(pattern, SELECTIONS_COLUMNS, {})}")
    ((total, steps),) = connection.execute("SELECT count(*), count(DISTINCT step) FROM recorded").fetchall()
    every = max(1, -(-total // options.rows))
    shards = [shard for (shard,) in connection.execute("SELECT DISTINCT shard FROM recorded").fetchall()]
    data.refuse_other((shard for shard in shards if shard in data.shards), run)
    imaged = imaged_shards(data, shuffled(shards), options.image_bytes)
    place = {"name": shards, "source": [data.sources.get(s) for s in shards], "imaged": [s in imaged for s in shards]}
    connection.register("_about", pa.table(place))
    connection.execute(
        f"""
        CREATE TABLE chosen AS
        WITH steps AS (SELECT step, row_number() OVER (ORDER BY step) AS n FROM (SELECT DISTINCT step FROM recorded))
        SELECT r.*, a.source, a.imaged,
            least({BINS - 1}, floor((step - 1) * {BINS} / max(step) OVER ()))::INT AS bin
        FROM recorded r SEMI JOIN (SELECT step FROM steps WHERE (n - 1) % {every} = 0) s USING (step)
        JOIN _about a ON r.shard = a.name
        """
    )
    connection.unregister("_about")
    if every == 1:
        return f"All {total:,} rows of {counted(steps, 'recorded step')} were read."
    ((kept,),) = connection.execute("SELECT count(DISTINCT step) FROM chosen").fetchall()
    return f"A sample: {kept:,} of {steps:,} recorded steps, every {every:,}th. Counts are of the sample."


def _add_labels(connection: duckdb.DuckDBPyConnection, run: str, dataset: str) -> None:
    """The table `drawn`: `chosen` with each example's label, from the run's score table, and whether the label is wrong.

    Both are NULL where nobody knows them."""
    table = (_document(run, "manifest.json").get("score_table") or {}).get("folder")
    labels = "SELECT NULL::VARCHAR AS shard, NULL::VARCHAR AS key, NULL::INT AS label WHERE false"
    try:
        if table:
            folder = open_root(connection, open_scores(str(table)).folder)
            labels = parquet_sql(f"{folder}/*{ENDING}", SCORES_COLUMNS, {})
    except CurateError:
        pass  # the run may have been moved away from its table
    known = {row[0] for row in connection.execute("DESCRIBE analysis").fetchall()}
    clean = (
        f"SELECT shard, key, {CLEAN}::BIGINT AS clean FROM analysis WHERE dataset = ?"
        if CLEAN in known
        else ("SELECT NULL::VARCHAR AS shard, NULL::VARCHAR AS key, NULL::BIGINT AS clean WHERE ? IS NULL")
    )
    connection.execute(
        f"""
        CREATE TABLE drawn AS
        SELECT c.*, t.label, t.label <> a.clean AS wrong FROM chosen c
        LEFT JOIN (SELECT shard, key, label FROM ({labels})) t USING (shard, key)
        LEFT JOIN ({clean}) a USING (shard, key)
        """,
        [dataset],
    )


def _page(
    connection: duckdb.DuckDBPyConnection,
    run: str,
    about: Mapping[str, Any],
    data: Data,
    read: str,
    options: InspectOptions,
) -> tuple[Page, Figures]:
    ((rows, examples, chosen, last, labels, sources, wrong),) = connection.execute(
        "SELECT count(*), count(DISTINCT (shard, key)), count(*) FILTER (selected), max(step), count(label), count(source), "
        "count(wrong) FROM drawn"
    ).fetchall()
    ((ever,),) = connection.execute("SELECT count(DISTINCT (shard, key)) FROM drawn WHERE selected").fetchall()
    tiles = [
        Tile(f"{last:,}", "steps", f"{rows:,} recorded draws"),
        Tile(f"{examples:,}", "different examples drawn"),
        Tile(f"{ever:,}", "of them were chosen", accuracy(ever / examples)),
        Tile(accuracy(chosen / rows), "of each super-batch is chosen", "on average"),
    ]
    figures: Figures = {}
    sections = []
    for column, word, count in (("label", "class", labels), ("source", "source", sources)):
        if count:
            sections.append(_over_time(connection, column, word, data, figures))
    parts: list[Part] = []
    for column, title in LOSSES.items():
        _losses(connection, column, figures)
        parts.append(Plot(column, f"Mean loss of the {title}: of all drawn examples, and of those that were chosen"))
    sections.append(Section("Losses over time", "", parts))
    if wrong:
        _wrong(connection, figures)
        note = "Clean labels are used for this page only, never for training."
        sections.append(Section("Wrong labels", note, [Plot("wrong", "Share of wrong labels")]))
    sections.append(_sheets(connection, data, options))
    facts = {
        "run": run,
        "data set": data.name,
        "policy": f"{about.get('policy')}, filter ratio {about.get('filter_ratio')}",
        "learner": str(about.get("learner")),
        "read": read,
    }
    lead = f"What the run {run.rpartition('/')[2]} chose of {data.name} by the policy {about.get('policy')}."
    return Page(f"curate inspect: {run}", lead, tiles, sections, facts), figures


def _steps(connection: duckdb.DuckDBPyConnection) -> dict[int, float]:
    """The middle step of each bin."""
    return dict(connection.execute("SELECT bin, avg(step) FROM drawn GROUP BY bin ORDER BY bin").fetchall())


def _over_time(connection: duckdb.DuckDBPyConnection, column: str, word: str, data: Data, figures: Figures) -> Section:
    """How often a draw of each group is chosen: over the run, and over time for the groups that differ most."""
    found = connection.execute(
        f"""
        SELECT {column}, count(*), avg(selected::INT) AS rate, avg(selected::INT) FILTER (bin < {BINS // 4}),
            avg(selected::INT) FILTER (bin >= {BINS - BINS // 4})
        FROM drawn WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY rate DESC, 1
        """
    ).fetchall()
    total = sum(row[1] for row in found)
    names = {value: data.class_name(value) if column == "label" else str(value) for value, *_ in found}
    rates = connection.execute(f"SELECT {column}, bin, avg(selected::INT) FROM drawn GROUP BY 1, 2").fetchall()
    of = {(value, place): rate for value, place, rate in rates}
    steps = _steps(connection)
    lines = {names[value]: [of.get((value, place)) for place in steps] for value, *_ in both_ends(found, LINES)}
    figures[f"by_{word}"] = lambda: over_time(list(steps.values()), lines, "share of draws that are chosen", True)
    cut = f"; of {len(found):,}, those that are chosen most and least often" if len(found) > MOST_GROUPS else ""
    table = [
        (names[value], f"{n:,}", accuracy(n / total), *("-" if rate is None else accuracy(rate) for rate in shares))
        for value, n, *shares in both_ends(found, MOST_GROUPS)
    ]
    few = f" Lines: the {LINES} that are chosen most and least often." if len(names) > LINES else ""
    return Section(
        f"What was chosen, by {word}",
        f"A draw is an example in a super-batch. Where all lines are level and together, {word} plays no part.{few}",
        [
            Plot(f"by_{word}", f"Share of a {word}'s draws that are chosen"),
            Table(
                f"By {word}{cut}",
                (word, "draws", "share of draws", "chosen", "in the first quarter", "in the last quarter"),
                table,
            ),
        ],
    )


def _losses(connection: duckdb.DuckDBPyConnection, column: str, figures: Figures) -> None:
    found = connection.execute(
        f"SELECT avg(step), avg({column}), avg({column}) FILTER (selected) FROM drawn GROUP BY bin ORDER BY bin"
    ).fetchall()
    if any(row[1] is not None for row in found):
        steps, drawn, chosen = (list(values) for values in zip(*found, strict=True))
        lines = {"drawn": drawn, "chosen": chosen}
        figures[column] = lambda: over_time(steps, lines, column.replace("_", " "), False)


def _wrong(connection: duckdb.DuckDBPyConnection, figures: Figures) -> None:
    found = connection.execute(
        "SELECT avg(step), avg(wrong::INT), avg(wrong::INT) FILTER (selected) FROM drawn GROUP BY bin ORDER BY bin"
    ).fetchall()
    steps, drawn, chosen = (list(values) for values in zip(*found, strict=True))
    lines = {"drawn": drawn, "chosen": chosen}
    figures["wrong"] = lambda: over_time(steps, lines, "wrong labels", True)


def _sheets(connection: duckdb.DuckDBPyConnection, data: Data, options: InspectOptions) -> Section:
    sheets: list[Part] = []
    for title, order in (
        ("Chosen most often", "hits DESC, draws, score DESC NULLS LAST"),
        ("Drawn often, chosen least", "hits / draws, draws DESC, score NULLS LAST"),
    ):
        found = connection.execute(
            "SELECT shard, key, count(*) FILTER (selected) AS hits, count(*) AS draws, any_value(label), avg(score) AS score "
            f"FROM drawn WHERE imaged GROUP BY shard, key ORDER BY {order}, shard, key LIMIT {options.images}"
        ).fetchall()
        cells = [
            Cell(
                (shard, key),
                "{caption}" if label is None else data.class_name(label),
                f"chosen {hits:,} of {draws:,} times" + ("" if score is None else f"\nscore {score:#.3g}"),
            )
            for shard, key, hits, draws, label, score in found
        ]
        sheets.append(Sheet(title, cells))
    note = "Of those chosen equally often, by the mean score."
    if data.spec is None:
        note += f" Images are not shown: {data.why}."
    return Section("Which examples", note, sheets)
