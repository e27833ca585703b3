"""Checks, before the first step, that a score table is the one that a run needs."""

from __future__ import annotations

from collections.abc import Sequence

from ...datasets.shards import Shard
from ...datasets.spec import DatasetSpec
from ...errors import TableError
from ..settings import OnMissing
from .lookup import ScoreTable


def check_table(
    table: ScoreTable, dataset: DatasetSpec, shards: Sequence[Shard], on_missing: OnMissing, needed: int
) -> None:
    """Check all rows of a table, and that it was made for this data set. Raises TableError.

    `needed` is the super-batch's size: a table with fewer examples cannot fill one.
    """
    manifest = table.manifest
    if manifest["dataset"] != dataset.name:
        raise TableError(
            f"{table.folder}: scores data set '{manifest['dataset']}', this run trains on '{dataset.name}'; "
            "give the table of this data set"
        )
    if manifest["dataset_fingerprint"] != dataset.fingerprint:
        raise TableError(
            f"{table.folder}: made of data set {manifest['dataset_fingerprint']}, '{dataset.name}' is now "
            f"{dataset.fingerprint} (other fields or classes); run score-reference into a new --out"
        )
    missing = [shard.name for shard in shards if not table.holds(shard.name)]
    if missing and on_missing == "error":
        raise TableError(
            f"{table.folder}: {len(missing):,} of {len(shards):,} shards are not scored, first '{missing[0]}'; "
            "run score-reference again, or choose --on-missing score|skip"
        )
    examples, _ = table.check(remember=True)
    if examples < needed and on_missing != "score":
        raise TableError(
            f"{table.folder}: only {examples:,} scored examples, a super-batch needs {needed:,}; score more data, or "
            "lower --batch-size or --filter-ratio"
        )
