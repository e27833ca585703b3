"""What a page says of one score table: how losses are spread, what stands out, and what a filter would drop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..units import accuracy, percent
from .duplicates import groups_of, nearest_earlier
from .inspect_options import InspectOptions
from .inspect_page import Cell, Page, Part, Plot, Section, Sheet, Table, Tile
from .inspect_plots import histogram, spreads
from .inspect_rows import Rows, both_ends
from .sql import one_row
from .table_choice import columns_of

# By name; they draw what was read before, so that nothing is open any more when they are called.
Figures = dict[str, Callable[[], Figure | None]]
BINS = 60
# Values beyond these quantiles are counted in the outermost bins.
TAILS = (0.005, 0.995)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FILTERS = (0.3, 0.5, 0.8)
# Of more groups, half of the rows of a plot or table are those of the lowest median loss, half of the highest.
MOST_GROUPS = 24
PRECISION_AT = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
CONFUSIONS = 12
GROUP_IMAGES = 6
CLEAN = "clean_label"
LOSSES_OR = {"loss": "losses", "similarity": "similarities"}


def scores_page(rows: Rows, options: InspectOptions) -> tuple[Page, Figures]:
    """The page of one table, and its figures. A table without classes, captions or embeddings has fewer sections."""
    (mean, middle) = one_row(rows.connection, f"SELECT avg({rows.measure}), median({rows.measure}) FROM rows")
    label = rows.measure if rows.measure != "loss" else f"loss ({rows.table.manifest['loss']})"
    tiles = [
        Tile(f"{rows.read:,}", "examples", "" if rows.read == rows.total else f"a sample of {rows.total:,}"),
        Tile(f"{rows.failures:,}", "could not be used", "see curate sql: failures"),
        Tile(f"{mean:.3f}", f"mean {label}", f"median {middle:.3f}"),
    ]
    bins = binned(rows, rows.measure)
    figures: Figures = {"losses": lambda: histogram(*bins, label)}
    parts: list[Part] = [Plot("losses", "All examples")]
    groups = group_rows(rows) if rows.group else []
    if groups:
        shown = dict(both_ends(groups, MOST_GROUPS))
        figures["losses_by_group"] = lambda: spreads(shown, label)
        parts.append(Plot("losses_by_group", f"By {_word(rows)}: 5, 25, 50, 75 and 95 % quantiles"))
    note = "The outermost bins also count what is below the 0.5 % and above the 99.5 % quantile."
    if len(groups) > MOST_GROUPS:
        note += f" Of {len(groups):,} groups the {MOST_GROUPS} with the lowest and highest median are shown."
    sections = [Section(f"How {LOSSES_OR[rows.measure]} are spread", note, parts)]
    if rows.has_classes:
        agreed = "predicted = label"
        sheets = [
            Sheet("Easiest", cells(rows, "ORDER BY loss", options.images), "The lowest losses."),
            Sheet(
                "Hardest of those whose label the reference predicts",
                cells(rows, "ORDER BY loss DESC", options.images, agreed),
                "The highest losses but for those of the next section.",
            ),
        ]
        sections.append(Section("Easiest and hardest examples", rows.image_line(), sheets))
        sections.append(_wrong_labels(rows, options, tiles))
    if "similarity" in rows.columns:
        sections.append(_captions(rows, options))
    sections.append(_duplicates(rows, options, tiles))
    sections.append(_filters(rows))
    lead = f"What is easy, hard and wrong in {rows.data.name}, as {rows.reference} sees it."
    title = f"curate inspect: {rows.table.manifest['dataset']}"
    return Page(title, lead, tiles, [s for s in sections if s.parts], facts_of(rows)), figures


def facts_of(rows: Rows) -> dict[str, str]:
    """Where a table's figures come from."""
    manifest = rows.table.manifest
    return {
        "score table": rows.table.folder,
        "reference": f"{manifest['reference']['name']}, fingerprint {rows.table.reference_fingerprint}",
        "data set": f"{manifest['dataset']}, fingerprint {manifest['dataset_fingerprint']}",
        "loss": f"{manifest['loss']}, computed in {manifest['precision']}",
        "read": rows.sample_line(),
    }


def _word(rows: Rows) -> str:
    return "class" if rows.has_classes else "source"


def binned(rows: Rows, column: str) -> tuple[list[float], list[int]]:
    """(edges, counts) of a column, between its tails."""
    low, high = one_row(
        rows.connection,
        f"SELECT {', '.join(f'quantile_cont({column}, {tail})::DOUBLE' for tail in TAILS)} FROM {rows.name}",
    )
    if not low < high:
        low, high = low - 0.5, low + 0.5
    width = (high - low) / BINS
    counted = rows.connection.execute(
        f"SELECT least(greatest(floor(({column} - {low!r}) / {width!r}), 0), {BINS - 1})::INT AS bin, count(*) FROM rows "
        f"WHERE {column} IS NOT NULL GROUP BY bin"
    ).fetchall()
    counts = dict(counted)
    return [low + width * i for i in range(BINS + 1)], [counts.get(i, 0) for i in range(BINS)]


def group_rows(rows: Rows) -> list[tuple[str, list[float]]]:
    """(name, quantiles of the measure) of each group, in order of the median."""
    found = rows.connection.execute(
        f"SELECT {rows.group}, quantile_cont({rows.measure}::DOUBLE, {list(QUANTILES)}) AS q FROM rows "
        f"GROUP BY ALL ORDER BY q[3], 1"
    ).fetchall()
    return [(rows.group_name(group), quantiles) for group, quantiles in found]


def cells(rows: Rows, order: str, count: int, where: str = "true") -> list[Cell]:
    """Examples whose images may be read, in an order of SQL. Classes are named; captions are read with the image."""
    label = "label, predicted" if rows.has_classes else "NULL, NULL"
    found = rows.connection.execute(
        f'SELECT shard, key, {rows.measure}, {label} FROM rows WHERE imaged AND ({where}) {order}, shard, "row" LIMIT {count}'
    ).fetchall()
    return [
        Cell((shard, key), _head(rows, label, predicted), f"{rows.measure} {value:#.3g}")
        for shard, key, value, label, predicted in found
    ]


def _head(rows: Rows, label: int | None, predicted: int | None) -> str:
    if label is None:
        return "{caption}"
    name = rows.data.class_name(label)
    return name if predicted in (label, None) else f"{name}; predicted {rows.data.class_name(predicted)}"


def _wrong_labels(rows: Rows, options: InspectOptions, tiles: list[Tile]) -> Section:
    """Where the reference predicts another class, the surest first."""
    disagree = "predicted <> label"
    (n,) = one_row(rows.connection, f"SELECT count(*) FROM rows WHERE {disagree}")
    tiles.append(Tile(accuracy(n / rows.read), "get another class from the reference", f"{n:,} examples"))
    found = rows.connection.execute(
        f"SELECT label, predicted, count(*) AS n, any_value(total) FROM rows JOIN (SELECT label AS l, count(*) AS total "
        f"FROM rows GROUP BY l) ON label = l WHERE {disagree} GROUP BY label, predicted ORDER BY n DESC, 1, 2 "
        f"LIMIT {CONFUSIONS}"
    ).fetchall()
    confused = [
        (rows.data.class_name(label), rows.data.class_name(predicted), f"{n:,}", accuracy(n / total))
        for label, predicted, n, total in found
    ]
    parts: list[Part] = [
        Sheet(
            "Label; and the class that the reference predicts",
            cells(rows, "ORDER BY loss DESC", options.images, disagree),
        ),
        Table("Most frequent pairs", ("label", "predicted", "examples", "share of the label"), confused),
    ]
    parts += _precision(rows)
    return Section(
        "Likely wrong labels",
        "The reference predicts another class than the label. In order of the loss: the less probable it finds the label, "
        "the earlier an example stands. A weak reference is wrong itself, and one that was trained on these labels may have "
        'learned their faults. All of them: curate sql "SELECT * FROM scores WHERE predicted <> label ORDER BY loss DESC".',
        parts,
    )


def _precision(rows: Rows) -> list[Part]:
    """How many of the first k are wrong, where the view `analysis` has the clean labels."""
    known = {row[0] for row in rows.connection.execute("DESCRIBE analysis").fetchall()}
    if CLEAN not in known:
        return []
    ranked = rows.connection.execute(
        f"SELECT r.predicted <> r.label, r.label <> a.{CLEAN}::BIGINT FROM rows r JOIN analysis a ON (a.shard, a.key) = "
        f"(r.shard, r.key) WHERE a.dataset = ? AND a.{CLEAN} IS NOT NULL ORDER BY 1 DESC, r.loss DESC, r.shard, r.row",
        [rows.table.manifest["dataset"]],
    ).fetchall()
    wrong = np.array([bad for suspected, bad in ranked if suspected], dtype=bool)
    total = sum(bad for _, bad in ranked)
    if not total or not len(wrong):
        return []
    at = [k for k in PRECISION_AT if k < len(wrong)] + [len(wrong)]
    lines = [(f"{k:,}", accuracy(wrong[:k].mean()), accuracy(wrong[:k].sum() / total)) for k in at]
    base = accuracy(total / len(ranked))
    return [
        Table(
            f"Measured: of the first k, how many are wrong. Of {len(ranked):,} examples with a known clean label {base} are",
            ("k", "precision", "share of all wrong labels"),
            lines,
        )
    ]


def _captions(rows: Rows, options: InspectOptions) -> Section:
    worst = cells(rows, "ORDER BY similarity", options.images)
    best = cells(rows, "ORDER BY similarity DESC", options.images)
    return Section(
        "Captions that fit, and those that fit nothing",
        f"By the similarity of image and caption, as the reference sees it. {rows.image_line()}",
        [
            Sheet(
                "Lowest similarity",
                worst,
                "Captions that do not say what the image shows, or that the reference misses.",
            ),
            Sheet("Highest similarity", best),
        ],
    )


def _duplicates(rows: Rows, options: InspectOptions, tiles: list[Tile]) -> Section:
    if "image_embedding" not in columns_of(rows.table):
        if rows.has_classes:
            return Section("", "", [])
        why = "They need embeddings: run score-reference with --embeddings into a new --out."
        return Section("Near duplicates", "", [why])
    names, vectors, read = list[tuple[str, str]](), list[Any](), 0
    for shard in rows.shards:
        if vectors and read + len(vectors[-1]) > options.duplicate_rows:
            break
        scores = rows.table.shard(shard, embeddings=True)
        assert scores.image_embedding is not None
        names += [(shard, key) for key in scores.keys]
        vectors.append(scores.image_embedding)
        read += len(scores.keys)
    read = min(read, options.duplicate_rows)
    groups = groups_of(*nearest_earlier(np.concatenate(vectors)[:read]), options.similar)
    doubled = sum(len(group) - 1 for group in groups)
    tiles.append(
        Tile(accuracy(doubled / max(1, read)), "repeat another image, nearly", f"cosine ≥ {options.similar:g}")
    )
    compared = (
        f"All {read:,} images were compared with each other."
        if read == rows.total
        else f"{read:,} of {rows.total:,} images were compared, each with each other, those of whole shards drawn at random: "
        "with all of them the share is higher."
    )
    most = max(2, options.images // GROUP_IMAGES)
    sheets = [
        Sheet(f"{len(group):,} alike", [Cell(names[i], "{caption}", names[i][1]) for i in group[:GROUP_IMAGES]])
        for group in groups[:most]
    ]
    note = (
        f"{compared} An image whose nearest earlier one has a cosine of at least {options.similar:g} (--similar) repeats it: "
        f"{doubled:,} images do, in {len(groups):,} groups. The largest groups, up to {GROUP_IMAGES} images of each:"
    )
    return Section("Near duplicates", note if groups else f"{compared} None repeats another.", sheets or [""])


def _filters(rows: Rows) -> Section:
    """What is dropped where the highest losses are, by class and by source."""
    ask = rows.connection.execute
    ask(
        'CREATE TABLE ranked AS SELECT label, source, loss, (row_number() OVER (ORDER BY loss, shard, "row") - 1) / '
        "count(*) OVER () AS place FROM rows"
    )
    parts: list[Part] = []
    for column, word in (("label", "class"), ("source", "source")):
        if (column == "label" and not rows.has_classes) or (column == "source" and not rows.data.sources):
            continue
        drops = ", ".join(f"avg((place >= {1 - share!r})::INT)" for share in FILTERS)
        found = ask(
            f"SELECT {column}, count(*), avg(loss), {drops} FROM ranked GROUP BY 1 ORDER BY 5 DESC, 1"
        ).fetchall()
        many = len(found) > MOST_GROUPS
        cut = f"; of {len(found):,}, those of which a filter of 50 % drops most and least" if many else ""
        lines = [
            (rows.group_name(group), f"{n:,}", accuracy(n / rows.read), f"{loss:.3f}", *map(accuracy, dropped))
            for group, n, loss, *dropped in both_ends(found, MOST_GROUPS)
        ]
        head = (
            word,
            "examples",
            "share",
            "mean loss",
            *(f"dropped at {percent(share)}" for share in FILTERS),
        )
        parts.append(Table(f"By {word}{cut}", head, lines))
    return Section(
        "What a filter would drop",
        "A filter that drops 30, 50 or 80 % of all examples, those of the highest loss, drops these shares of each group.",
        parts,
    )
