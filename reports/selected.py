"""What policies selected: its share of wrong labels, and the distributions of its losses and scores.

For analysis only. Clean labels are read here, after training, and never by training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from ..errors import QueryError
from .content import Histogram, Point, Selected, WrongLabels
from .sql import error_line
from .views import connect

STEP_BINS = 20
BINS = 40
MEASURES = ("online_loss", "reference_loss", "score")
# Losses have long tails: values beyond these quantiles are counted in the outermost bins.
TAILS = (0.005, 0.995)
CLEAN = "clean_label"


def selection(
    root: Path, found: Sequence[Point], budget: float, datasets: Mapping[str, Mapping[str, str]]
) -> tuple[Selected, ...]:
    """One entry for each policy that selects, from the selections of its first seed's run at `budget` (FLOPs).

    `wrong_labels` is None where the data set has no clean labels, or no run has a score table (which holds the labels
    that were trained on). A distribution is None where the policy has no such loss. Raises QueryError.
    """
    seed = min((p.seed for p in found), default=0)
    chosen = [p for p in found if p.budget_flops == budget and p.seed == seed]
    table = _table(root, found)
    scores = table.rstrip("/").rsplit("/", 2)[0] if table else "scores"
    connection = connect(scores=scores, runs=str(root / "runs"), datasets=datasets)
    try:
        selecting = {run for (run,) in connection.execute("SELECT DISTINCT run FROM selections").fetchall()}
        chosen = [p for p in chosen if p.run in selecting]
        edges = {measure: _edges(connection, measure, [p.run for p in chosen]) for measure in MEASURES}
        return tuple(
            Selected(
                policy=p.policy,
                run=p.run,
                wrong_labels=_wrong_labels(connection, p.run, table),
                distributions={m: _histogram(connection, p.run, m, edges[m]) for m in MEASURES},
            )
            for p in chosen
        )
    except (duckdb.Error, OSError) as e:
        raise QueryError(f"{root / 'runs'}: selections cannot be read: {error_line(e)}") from None
    finally:
        connection.close()


def _table(root: Path, found: Sequence[Point]) -> str | None:
    """The folder of the score table of the first run that has one. All runs of a comparison read the same table."""
    for point in found:
        try:
            manifest = json.loads((root / "runs" / point.run / "manifest.json").read_text(encoding="utf-8"))
            return str(manifest["score_table"]["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _wrong_labels(connection: duckdb.DuckDBPyConnection, run: str, table: str | None) -> WrongLabels | None:
    columns = {row[0] for row in connection.execute("DESCRIBE analysis").fetchall()}
    if table is None or CLEAN not in columns:
        return None
    dataset, reference = (part.partition("=")[2] for part in table.rstrip("/").rsplit("/", 2)[1:])
    rows = connection.execute(
        f"""
        WITH judged AS (
            SELECT s.step, s.selected, t.label::BIGINT <> try_cast(a.{CLEAN} AS BIGINT) AS wrong,
                floor((s.step - 1) * {STEP_BINS} / max(s.step) OVER ()) AS bin
            FROM selections s
            JOIN scores t ON s.shard = t.shard AND s.key = t.key AND t.dataset = $dataset AND t.reference = $reference
            JOIN analysis a ON s.shard = a.shard AND s.key = a.key AND a.dataset = $dataset
            WHERE s.run = $run
        )
        SELECT avg(step), avg(wrong::INT) FILTER (selected), avg(wrong::INT), count(*) FILTER (selected)
        FROM judged WHERE wrong IS NOT NULL GROUP BY bin HAVING count(*) FILTER (selected) > 0 ORDER BY bin
        """,
        {"dataset": dataset, "reference": reference, "run": run},
    ).fetchall()
    if not rows:
        return None
    step, selected, everything, n_selected = zip(*rows, strict=True)
    return WrongLabels(step=step, selected=selected, all=everything, n_selected=n_selected)


def _edges(connection: duckdb.DuckDBPyConnection, measure: str, runs: Sequence[str]) -> list[float] | None:
    found = connection.execute(
        f"SELECT quantile_cont({measure}, $tails) FROM selections WHERE list_contains($runs, run)",
        {"tails": list(TAILS), "runs": list(runs)},
    ).fetchone()
    if found is None or found[0] is None or not found[0][0] < found[0][1]:
        return None
    low, high = map(float, found[0])
    return [low + (high - low) * i / BINS for i in range(BINS + 1)]


def _histogram(
    connection: duckdb.DuckDBPyConnection, run: str, measure: str, edges: Sequence[float] | None
) -> Histogram | None:
    if edges is None:
        return None
    low, width = edges[0], (edges[-1] - edges[0]) / BINS
    rows = connection.execute(
        f"""
        SELECT selected, least(greatest(floor(({measure} - $low) / $width), 0), {BINS - 1})::INT AS bin, count(*)
        FROM selections WHERE run = $run AND {measure} IS NOT NULL GROUP BY ALL
        """,
        {"low": low, "width": width, "run": run},
    ).fetchall()
    if not rows:
        return None
    of_selected, of_rest = ({bin_: n for selected, bin_, n in rows if selected == flag} for flag in (True, False))
    return Histogram(
        edges=tuple(edges),
        selected=_shares(of_selected),
        n_selected=sum(of_selected.values()),
        rest=_shares(of_rest),
        n_rest=sum(of_rest.values()),
    )


def _shares(counts: Mapping[int, int]) -> tuple[float, ...]:
    total = sum(counts.values())
    return tuple(counts.get(i, 0) / total if total else 0.0 for i in range(BINS))
