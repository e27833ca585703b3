"""Contact sheets: the images of random examples that each policy kept and dropped late in its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import duckdb

from ..datasets.spec import DatasetSpec
from .content import Point
from .example_images import Shown, shown_images

IMAGES, SHARDS = 12, 3
# The last quarter of the steps: by then the online model has learned.
LATE = 0.75


Sheets = dict[str, dict[str, list[Shown]]]


def contact_sheets(root: Path, found: Sequence[Point], budget: float, dataset: DatasetSpec) -> Sheets:
    """By policy, `kept` and `dropped`: up to 12 examples each.

    They are a random but reproducible sample from the recorded selections of the first seed's run at `budget`, from at
    most three shards, which are read whole. Policies without recorded selections and examples that can no longer be read
    are left out.
    """
    seed = min((p.seed for p in found), default=0)
    drawn = {p.policy: _draw(root / "runs" / p.run) for p in found if (p.budget_flops, p.seed) == (budget, seed)}
    wanted = {(shard, key) for groups in drawn.values() for those in groups.values() for shard, key in those}
    images = shown_images(dataset, wanted)
    return {
        policy: {group: [images[name] for name in those if name in images] for group, those in groups.items()}
        for policy, groups in drawn.items()
        if groups
    }


def _draw(run: Path) -> dict[str, list[tuple[str, str]]]:
    """(shard, key) of examples that a run kept and dropped; empty where it recorded no selections."""
    if not any(run.glob("selections/*.parquet")):
        return {}
    rows = duckdb.execute(
        """
        WITH late AS (
            SELECT * FROM (SELECT *, max(step) OVER () AS last FROM read_parquet($files)) WHERE step >= $late * last
        ),
        few AS (SELECT shard FROM late GROUP BY shard ORDER BY hash(shard) LIMIT $shards),
        seen AS (SELECT DISTINCT shard, key, selected FROM late SEMI JOIN few USING (shard))
        SELECT selected, shard, key FROM seen
        QUALIFY row_number() OVER (PARTITION BY selected ORDER BY hash(shard || '/' || key)) <= $images
        """,
        {"files": f"{run}/selections/*.parquet", "late": LATE, "shards": SHARDS, "images": IMAGES},
    ).fetchall()
    groups: dict[str, list[tuple[str, str]]] = {"kept": [], "dropped": []}
    for selected, shard, key in sorted(rows):
        groups["kept" if selected else "dropped"].append((shard, key))
    return groups


def sheets_html(sheets: Mapping[str, Mapping[str, Sequence[Shown]]]) -> str:
    """The sheets as HTML, a row of images for each policy and group; empty where there are none."""
    parts = []
    for policy, groups in sheets.items():
        for group, examples in groups.items():
            cells = "".join(
                f'<li><img src="{one.image}" alt="" width="64" height="64"><span>{escape(one.caption)}</span></li>'
                for one in examples
            )
            parts.append(f'<h4>{escape(policy)} {group}</h4><ul class="sheet">{cells}</ul>' if cells else "")
    return "\n".join(part for part in parts if part)
