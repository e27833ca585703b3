"""The view `metadata`: the Parquet files that img2dataset writes next to its tars, SHARD.parquet beside SHARD.tar.

Their columns are whatever the files have: key, url, caption, uid, similarity, and others. A row is a URL, also one that
could not be fetched. The view adds dataset and shard, so that rows join with `scores` on (dataset, shard, key).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence

import duckdb

from ..datasets.shards import list_shards, path_of
from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..datasets.storage import full_url, list_entries
from ..errors import CurateError, QueryError
from .sql import empty_sql, error_line, literal
from .views import open_root

VIEW = "metadata"
COLUMNS = {"dataset": "VARCHAR", "shard": "VARCHAR", "key": "VARCHAR"}
ENDING = ".parquet"


def mentions(sql: str) -> bool:
    """Whether a query may read the view. Listing the files of many shards takes seconds, so only such a query does."""
    return re.search(rf"\b{VIEW}\b", sql, re.IGNORECASE) is not None


def metadata_files(spec: DatasetSpec) -> list[tuple[str, str]]:
    """(shard, URL) of every Parquet file next to a training tar of its name. Raises as list_shards does."""
    if spec.format != "webdataset":
        return []
    wanted = {full_url(f"{path_of(shard.url)}{ENDING}"): shard.name for shard in list_shards(spec)}
    found: set[str] = set()
    for folder in sorted({url.rpartition("/")[0] for url in wanted}):
        found.update(list_entries(folder))
    return [(shard, url) for url, shard in wanted.items() if url in found]


def add_metadata(connection: duckdb.DuckDBPyConnection, specs: Sequence[DatasetSpec]) -> list[str]:
    """Create the view over the files of these data sets, and return its columns. Without files it has no rows.

    Raises QueryError where a file cannot be read, and what listing the shards raises.
    """
    files = [(spec.name, shard, url) for spec in specs for shard, url in metadata_files(spec)]
    body = empty_sql(COLUMNS)
    if files:
        for folder in {url.rpartition("/")[0] for _, _, url in files}:
            open_root(connection, folder)
        connection.execute("CREATE TABLE _metadata_files (dataset VARCHAR, shard VARCHAR, file VARCHAR)")
        connection.execute(
            "INSERT INTO _metadata_files SELECT unnest($datasets), unnest($shards), unnest($files)",
            {"datasets": [f[0] for f in files], "shards": [f[1] for f in files], "files": [f[2] for f in files]},
        )
        names = ", ".join(literal(glob.escape(url)) for _, _, url in files)
        body = (
            "SELECT f.dataset, f.shard, m.* EXCLUDE (filename) FROM "
            f"read_parquet([{names}], filename = true, union_by_name = true, hive_partitioning = false) m "
            "JOIN _metadata_files f ON f.file = m.filename"
        )
    try:
        connection.execute(f"CREATE VIEW {VIEW} AS {body}")
        return [str(row[0]) for row in connection.execute(f"DESCRIBE {VIEW}").fetchall()]
    except (duckdb.Error, OSError) as e:
        raise QueryError(f"view {VIEW}: {error_line(e)}") from None


def add_metadata_of_all(connection: duckdb.DuckDBPyConnection, config: Config, query: str) -> None:
    """For `curate sql`: the view over every data set of curate.toml whose tars can be listed, if the query reads it."""
    if not mentions(query):
        return
    specs = []
    for name in config.datasets:
        try:
            spec = find_dataset(name, config)
            metadata_files(spec)
            specs.append(spec)
        except CurateError:  # the data of another entry may be away
            continue
    add_metadata(connection, specs)
