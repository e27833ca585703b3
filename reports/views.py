"""SQL views over score tables and runs. DuckDB reads the files in place; nothing is imported or copied.

Views bind to globs with declared columns. So connecting lists file names but opens no score, selection or run file, and
every view has the same columns even where there are no files.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from typing import Any

import duckdb

from ..datasets.patterns import other_spelling
from ..datasets.storage import filesystem, is_folder, is_local
from ..errors import QueryError
from .runs import METRICS_COLUMNS, metrics_sql, runs_sql
from .sql import Columns, empty_sql, error_line, literal, parquet_sql

SCORE_FILES = "dataset=*/reference=*/*.parquet"
FAILURE_FILES = "dataset=*/reference=*/_failures/*.parquet"
SCORES_COLUMNS: Columns = {
    "shard": "VARCHAR",
    "row": "INTEGER",
    "key": "VARCHAR",
    "target_hash": "UBIGINT",
    "loss": "FLOAT",
    "label": "INTEGER",
    "predicted": "INTEGER",
    "similarity": "FLOAT",
    "image_embedding": "FLOAT[]",
    "text_embedding": "FLOAT[]",
}
FAILURES_COLUMNS: Columns = {
    "shard": "VARCHAR",
    "row": "INTEGER",
    "key": "VARCHAR",
    "stage": "VARCHAR",
    "reason": "VARCHAR",
}
SELECTIONS_COLUMNS: Columns = {
    "step": "BIGINT",
    "shard": "VARCHAR",
    "key": "VARCHAR",
    "online_loss": "FLOAT",
    "reference_loss": "FLOAT",
    "score": "FLOAT",
    "selected": "BOOLEAN",
}
ANALYSIS_COLUMNS: Columns = {"dataset": "VARCHAR", "shard": "VARCHAR", "key": "VARCHAR"}
OF_SCORES = {"dataset": r"dataset=([^/]*)/[^/]*/[^/]*$", "reference": r"reference=([^/]*)/[^/]*$"}
OF_FAILURES = {"dataset": r"dataset=([^/]*)/[^/]*/_failures/", "reference": r"reference=([^/]*)/_failures/[^/]*$"}
OF_SELECTIONS = {"run": r"([^/]*)/selections/[^/]*$"}


def connect(
    *,
    scores: str = "scores",
    runs: str = "runs",
    datasets: Mapping[str, Mapping[str, Any]] | None = None,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views scores, failures, runs, metrics, selections and analysis.

    `scores` and `runs` are folders or fsspec URLs; if they do not exist, views are empty and have the same columns.
    `datasets` are the [datasets.NAME] tables of curate.toml: files of their `analysis` settings fill the view `analysis`
    (paths are relative to the working folder). FLOPs columns are FLOPs, seconds columns are seconds.

    Raises QueryError where a root cannot be listed or an analysis file cannot be read, StorageError where nothing opens
    such a URL.
    """
    connection = duckdb.connect()
    # Otherwise a misspelt table name could resolve to one of our Python variables instead of raising an error.
    connection.execute("SET python_enable_replacements = false")
    score_root, run_root = open_root(connection, scores), open_root(connection, runs)
    metrics = f"{run_root}/*/metrics.jsonl"
    definitions = {
        "scores": _parquet_view(connection, f"{score_root}/{SCORE_FILES}", OF_SCORES, SCORES_COLUMNS),
        "failures": _parquet_view(connection, f"{score_root}/{FAILURE_FILES}", OF_FAILURES, FAILURES_COLUMNS),
        "runs": runs_sql(run_root),
        "metrics": metrics_sql(metrics) if _names(connection, metrics) else empty_sql(METRICS_COLUMNS),
        "selections": _parquet_view(
            connection, f"{run_root}/*/selections/*.parquet", OF_SELECTIONS, SELECTIONS_COLUMNS
        ),
        "analysis": _analysis_view(connection, datasets or {}),
    }
    for name, sql in definitions.items():
        try:
            connection.execute(f"CREATE VIEW {name} AS {sql}")
        except (duckdb.Error, OSError) as e:
            raise QueryError(f"view {name}: {error_line(e)}") from None
    return connection


def check_roots(**roots: str) -> None:
    """Raises QueryError for a root that is not there, unless it has its option's own name as by default: then views are
    empty."""
    for option, root in roots.items():
        if root != option and not is_folder(root):
            raise QueryError(f"--{option} is '{root}', and no such folder is there{other_spelling(root)}")


def open_root(connection: duckdb.DuckDBPyConnection, root: str) -> str:
    """The root as DuckDB reads it, with its glob characters escaped. Registers the file system of an fsspec URL."""
    fs, path = filesystem(root)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise QueryError(
            f"{root}: DuckDB reads no path that is not UTF-8; rename the folder, or give a link to it"
        ) from None
    if is_local(root):
        return glob.escape(path.rstrip("/"))
    try:
        fs.invalidate_cache()
        protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        if not connection.filesystem_is_registered(protocol):
            connection.register_filesystem(fs)
    except (ValueError, duckdb.Error) as e:
        raise QueryError(f"{root}: cannot open this kind of URL: {error_line(e)}") from None
    return glob.escape(root.rstrip("/"))


def _names(connection: duckdb.DuckDBPyConnection, pattern: str) -> bool:
    """Whether the pattern matches any file. DuckDB raises an error for a pattern without files."""
    try:
        return connection.execute(f"SELECT file FROM glob({literal(pattern)}) LIMIT 1").fetchone() is not None
    except (duckdb.Error, OSError) as e:
        raise QueryError(f"{pattern}: cannot be listed: {error_line(e)}") from None


def _parquet_view(
    connection: duckdb.DuckDBPyConnection, pattern: str, of_path: Mapping[str, str], columns: Columns
) -> str:
    if not _names(connection, pattern):
        return empty_sql({**dict.fromkeys(of_path, "VARCHAR"), **columns})
    return parquet_sql(pattern, columns, of_path)


def _analysis_view(connection: duckdb.DuckDBPyConnection, datasets: Mapping[str, Mapping[str, Any]]) -> str:
    """The union of all data sets' columns, by name. Their columns are not known, so one file per data set is opened."""
    parts = []
    for name, entry in sorted(datasets.items()):
        path = str(entry.get("analysis") or "")
        if not path:
            continue
        folder, _, last = path.rpartition("/")
        pattern = f"{open_root(connection, folder) if folder else '.'}/{last}"
        if not last.lower().endswith((".parquet", ".pq")):
            pattern = f"{pattern.rstrip('/')}/*.parquet"
        if not _names(connection, pattern):
            continue
        part = (
            f"SELECT {literal(name)} AS dataset, COLUMNS(lambda c: lower(c) <> 'dataset') "
            f"FROM read_parquet({literal(pattern)}, hive_partitioning = false)"
        )
        try:
            connection.execute(f"{part} LIMIT 0")
        except (duckdb.Error, OSError) as e:
            raise QueryError(f"data set '{name}': analysis {path} cannot be read: {error_line(e)}") from None
        parts.append(part)
    return " UNION ALL BY NAME ".join([empty_sql(ANALYSIS_COLUMNS), *parts])
