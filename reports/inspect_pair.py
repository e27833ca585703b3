"""What a page says of two references: where their losses of the same examples differ."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np

from ..errors import TableError
from ..scoring.tables.lookup import ScoreTable
from ..units import accuracy, percent
from .inspect_options import InspectOptions
from .inspect_page import Cell, Page, Part, Plot, Section, Sheet, Table, Tile
from .inspect_plots import density
from .inspect_rows import Data, Rows, add_rows, both_ends
from .inspect_scores import FILTERS, MOST_GROUPS, TAILS, Figures, facts_of
from .sql import one_row

SIDE = 48


def pair_page(
    connection: duckdb.DuckDBPyConnection, tables: Sequence[ScoreTable], data: Data, options: InspectOptions
) -> tuple[Page, Figures]:
    """The page of two tables A and B. Raises TableError where they share no example."""
    a, b = tables
    if a.manifest["dataset_fingerprint"] != b.manifest["dataset_fingerprint"]:
        raise TableError(
            f"{a.folder} is of data set '{a.manifest['dataset']}', {b.folder} of '{b.manifest['dataset']}' (or of other "
            "fields or classes); give two tables of one data set"
        )
    shared = a.shard_names() & b.shard_names()
    size, images = options.rows, options.image_bytes
    of_a, of_b = (
        add_rows(connection, name, table, data, rows=size, image_bytes=images, only=shared)
        for name, table in (("rows", a), ("others", b))
    )
    connection.execute(
        """
        CREATE TABLE both_rows AS
        SELECT r.*, o.loss AS other_loss, o.predicted AS other_predicted,
            percent_rank() OVER (ORDER BY r.loss) AS place, percent_rank() OVER (ORDER BY o.loss) AS other_place
        FROM rows r JOIN others o ON (r.shard, r.key, r.target_hash) = (o.shard, o.key, o.target_hash)
        """
    )
    (n,) = one_row(connection, "SELECT count(*) FROM both_rows")
    if not n:
        raise TableError(f"{a.folder} and {b.folder}: no example is in both; give two tables of the same data")
    (corr,) = one_row(connection, "SELECT corr(place, other_place) FROM both_rows")
    tiles = [
        Tile(f"{n:,}", "examples in both", "" if of_a.read == of_a.total else f"a sample of {of_a.total:,}"),
        Tile("-" if corr is None else f"{corr:.3f}", "rank correlation of the losses", "Spearman's"),
    ]
    if of_a.has_classes:
        (same,) = one_row(connection, "SELECT avg((predicted = other_predicted)::INT) FROM both_rows")
        tiles.append(Tile(accuracy(same), "get the same class from both"))
    overlap = _overlap(connection, n)
    tiles.append(Tile(overlap[1][1], "of A's easier half are in B's too", "50 % by chance"))
    sections = [
        Section(
            "Losses beside each other",
            "Each example by its loss under A and under B, between the 0.5 % and 99.5 % quantiles. On the dotted line both "
            "are equal.",
            [
                Plot("density", "Losses of the same examples"),
                Table(
                    "What both would keep, where the highest losses are dropped",
                    ("dropped", "of the kept, both keep", "by chance"),
                    overlap,
                ),
            ],
        ),
        _disagreement(of_a, options),
        _groups(of_a),
    ]
    counts, edges = _counted(connection)
    figures: Figures = {"density": lambda: density(counts, edges, ("loss by A", "loss by B"))}
    facts = {f"A, {k}": v for k, v in facts_of(of_a).items()} | {f"B, {k}": v for k, v in facts_of(of_b).items()}
    facts["read"] = of_a.sample_line()
    lead = f"Where two references disagree on {data.name}: A is {of_a.reference}, B is {of_b.reference}."
    return Page(f"curate inspect: two references of {data.name}", lead, tiles, sections, facts), figures


def _overlap(connection: duckdb.DuckDBPyConnection, n: int) -> list[tuple[str, str, str]]:
    lines = []
    for share in FILTERS:
        kept = 1 - share
        (both, mine) = one_row(
            connection,
            f"SELECT count(*) FILTER (place < {kept!r} AND other_place < {kept!r}), count(*) FILTER (place < {kept!r}) "
            "FROM both_rows",
        )
        lines.append((percent(share), accuracy(both / max(1, mine)), percent(kept)))
    return lines


def _disagreement(rows: Rows, options: InspectOptions) -> Section:
    parts: list[Part] = [
        Sheet("Easy for A, hard for B", _cells(rows, "place - other_place", options.images)),
        Sheet("Hard for A, easy for B", _cells(rows, "other_place - place", options.images)),
    ]
    if rows.has_classes:
        sure = _cells(
            rows, "greatest(place, other_place)", options.images, "predicted <> other_predicted AND label <> predicted"
        )
        parts.append(Sheet("Another class from each, and neither from A the label", sure))
    return Section(
        "Where they disagree",
        f"By the difference of an example's place in A's order of losses and in B's. {rows.image_line()}",
        parts,
    )


def _cells(rows: Rows, order: str, count: int, where: str = "true") -> list[Cell]:
    found = rows.connection.execute(
        f"SELECT shard, key, loss, other_loss, label, predicted, other_predicted FROM both_rows WHERE imaged AND ({where}) "
        f'ORDER BY {order}, shard, "row" LIMIT {count}'
    ).fetchall()
    cells = []
    for shard, key, loss, other, label, predicted, other_predicted in found:
        head = "{caption}" if label is None else rows.data.class_name(label)
        small = f"A: {loss:#.3g}\nB: {other:#.3g}"
        if label is not None:
            said = rows.data.class_name(predicted), rows.data.class_name(other_predicted)
            small = f"A: {said[0]} ({loss:#.3g})\nB: {said[1]} ({other:#.3g})"
        cells.append(Cell((shard, key), head, small))
    return cells


def _groups(rows: Rows) -> Section:
    """Which classes or sources A finds easier than B."""
    if not rows.group:
        return Section("", "", [""])
    found = rows.connection.execute(
        f"SELECT {rows.group}, count(*), avg(loss), avg(other_loss), avg(other_place - place) AS d FROM both_rows "
        "GROUP BY 1 ORDER BY d DESC, 1"
    ).fetchall()
    cut = f"; of {len(found):,}, those that differ most" if len(found) > MOST_GROUPS else ""
    lines = [
        (rows.group_name(group), f"{n:,}", f"{a:.3f}", f"{b:.3f}", f"{d * 100:+.1f} %")
        for group, n, a, b, d in both_ends(found, MOST_GROUPS)
    ]
    head = ("group", "examples", "mean loss A", "mean loss B", "mean difference in place")
    return Section(
        "By group",
        "A positive difference: A finds the group easier than B does, compared with all examples.",
        [Table(f"Classes or sources{cut}", head, lines)],
    )


def _counted(connection: duckdb.DuckDBPyConnection) -> tuple[np.ndarray, tuple[list[float], list[float]]]:
    """How many examples have each pair of losses, [A, B], and the edges of the bins."""
    columns, edges = ("loss", "other_loss"), list[list[float]]()
    for column in columns:
        tails = ", ".join(f"quantile_cont({column}, {tail})::DOUBLE" for tail in TAILS)
        low, high = one_row(connection, f"SELECT {tails} FROM both_rows")
        edges.append(np.linspace(low, high if low < high else low + 1, SIDE + 1).tolist())
    bins = [f"floor(({c} - {e[0]!r}) / {e[1] - e[0]!r})::INT" for c, e in zip(columns, edges, strict=True)]
    found = connection.execute(f"SELECT {', '.join(bins)}, count(*) FROM both_rows GROUP BY 1, 2").fetchall()
    counts = np.zeros((SIDE, SIDE), dtype=np.int64)
    for x, y, count in found:
        if 0 <= x < SIDE and 0 <= y < SIDE:
            counts[x, y] = count
    return counts, (edges[0], edges[1])
