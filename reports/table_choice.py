"""The score tables of a data set in a folder, and the one that is meant."""

from __future__ import annotations

import pyarrow.parquet as pq

from ..datasets.spec import DatasetSpec
from ..datasets.storage import full_url, glob, join_url, open_read
from ..errors import TableError
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..scoring.tables.schema import ENDING, MANIFEST


def tables_of(root: str, dataset: str) -> list[ScoreTable]:
    """A data set's score tables, in a folder or below it, by folder; none where there are none."""
    patterns = (MANIFEST, f"reference=*/{MANIFEST}", f"dataset={dataset}/reference=*/{MANIFEST}")
    folders = {url.removesuffix("/" + MANIFEST) for pattern in patterns for url in glob(join_url(root, pattern))}
    tables = [open_scores(folder) for folder in sorted(folders)]
    return [table for table in tables if table.manifest["dataset"] == dataset]


def table_of(root: str, spec: DatasetSpec) -> ScoreTable:
    """A data set's one score table, in a folder or below it. Raises TableError where there is none, or more than one, and
    where it has no rows or was made of other fields."""
    tables = tables_of(root, spec.name)
    if len(tables) != 1:
        choices = ": " + ", ".join(table.folder for table in tables) if tables else ""
        raise TableError(
            f"{root}: {len(tables)} score tables of data set '{spec.name}' there, expected one{choices}; "
            + ("give the folder of one" if tables else "run 'curate score-reference' first")
        )
    (table,) = tables
    if table.manifest["dataset_fingerprint"] != spec.fingerprint:
        raise TableError(
            f"{table.folder}: made of data set {table.manifest['dataset_fingerprint']}, '{spec.name}' is now "
            f"{spec.fingerprint} (other fields or classes); run score-reference into a new --out"
        )
    if not table.shard_names():
        raise TableError(f"{table.folder}: no shard is scored yet; run 'curate score-reference' first")
    return table


def root_of(table: ScoreTable) -> str:
    """The folder above dataset=.../reference=..., which the view `scores` reads."""
    return full_url(table.folder).rsplit("/", 2)[0]


def columns_of(table: ScoreTable) -> tuple[str, ...]:
    """The columns of a table's score files, which depend on the task."""
    with open_read(join_url(table.folder, min(table.shard_names()) + ENDING)) as file:
        return tuple(pq.read_schema(file).names)


def about(table: ScoreTable) -> dict[str, str]:
    """What identifies a table, as JSON."""
    return {
        "folder": table.folder,
        "reference": str(table.manifest["reference"]["name"]),
        "reference_fingerprint": table.reference_fingerprint,
        "dataset_fingerprint": str(table.manifest["dataset_fingerprint"]),
    }
