"""Which examples an export has: one SQL statement over score tables, runs and metadata, made from the options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import duckdb

from ..datasets.spec import Config, DatasetSpec, analysis_files
from ..datasets.storage import exists, join_url
from ..errors import QueryError, SpecError, did_you_mean
from ..scoring.tables.lookup import ScoreTable
from ..scoring.tables.schema import ENDING
from .export_options import POLICY_SQL, ExportOptions
from .metadata import VIEW, add_metadata, mentions
from .reading import check_read
from .sql import error_line, literal, one_row, parquet_sql
from .table_choice import about, columns_of, root_of, table_of, tables_of
from .views import SCORES_COLUMNS, connect, open_root

VALUE, UID = "value", "uid"
# Too wide to travel with every row, and no use in a list of examples.
LEFT_OUT = ("image_embedding", "text_embedding")
HAS_VALUE = f"{VALUE} IS NOT NULL AND NOT isnan({VALUE})"
FROM_RUN = ("online_loss", "score", "drawn", "selected")


@dataclass(frozen=True)
class Selected:
    """The chosen rows, not read yet: `sql` on `connection`, with its `columns`; no example is there twice.

    `of` is how many scored examples the data set has, None without a table; `without_value` how many of them have no
    value to choose by. `tables` are the score tables, as JSON.
    """

    connection: duckdb.DuckDBPyConnection
    sql: str
    columns: tuple[str, ...]
    of: int | None
    without_value: int
    tables: list[dict[str, str]] = field(default_factory=list)


def select_rows(options: ExportOptions, spec: DatasetSpec, config: Config) -> Selected:
    """Prepare the export's query. Raises SpecError, TableError, and QueryError for SQL that DuckDB refuses."""
    return _by_value(options, spec) if options.sql is None else _by_query(options, options.sql, spec, config)


def _by_query(options: ExportOptions, sql: str, spec: DatasetSpec, config: Config) -> Selected:
    check_read(sql)
    tables = tables_of(options.scores, spec.name)
    root = root_of(tables[0]) if len(tables) == 1 else options.scores
    connection = connect(scores=root, runs=options.runs, datasets=analysis_files(config))
    if mentions(sql) or options.uid == VIEW:
        add_metadata(connection, [spec])
    query = f"(\n{sql.strip().rstrip(';')}\n)"
    columns = _columns(connection, f"SELECT * FROM {query}")
    missing = [name for name in ("shard", "key") if name not in columns]
    if missing:
        raise QueryError(
            f"the query's columns are {', '.join(columns)}; an export also needs {' and '.join(missing)}, which say "
            "which example a row is"
        )
    others = "".join(f', "{name}"' for name in columns if name not in ("shard", "key"))
    once = f"SELECT DISTINCT ON (shard, key) * FROM {query} ORDER BY shard, key{others}"
    if options.uid == VIEW and UID not in columns:
        once = f"SELECT c.*, m.{UID} FROM ({once}) c LEFT JOIN {VIEW} m ON (m.shard, m.key) = (c.shard, c.key)"
        columns = (*columns, UID)
    of = None
    if tables:
        scored = f"SELECT shard, key FROM scores WHERE dataset = {literal(spec.name)}"
        if len(tables) > 1:
            scored = f"SELECT DISTINCT shard, key FROM ({scored})"
        (of,) = one_row(connection, f"SELECT count(*) FROM ({scored})")
    return Selected(
        connection, f"SELECT * FROM ({once}) {_sorted(columns)}", columns, of, 0, [about(t) for t in tables]
    )


def _by_value(options: ExportOptions, spec: DatasetSpec) -> Selected:
    assert options.by is not None and options.keep is not None
    by = POLICY_SQL.get(options.by, options.by)
    tables = [table_of(options.scores, spec)]
    runs, _, run = _run_of(options).rpartition("/")
    connection = connect(scores=root_of(tables[0]), runs=runs or ".")
    _name_rows(connection, "reference", tables[0])
    joined = ["reference s"]
    parts = {"s": tuple(name for name in columns_of(tables[0]) if name in SCORES_COLUMNS and name not in LEFT_OUT)}
    if options.online is not None:
        tables.append(table_of(options.online, spec))
        _name_rows(connection, "online", tables[1])
        # Another target means another label or caption: then the two losses are not of the same example.
        joined.append(
            "LEFT JOIN (SELECT shard, key, target_hash, loss AS online_loss FROM online) o "
            "ON (s.shard, s.key, s.target_hash) = (o.shard, o.key, o.target_hash)"
        )
        parts["o"] = ("online_loss",)
    if options.run is not None:
        joined.append(
            f"LEFT JOIN ({_selections(connection, run, options.run, spec)}) r ON (s.shard, s.key) = (r.shard, r.key)"
        )
        parts["r"] = FROM_RUN
    known = [name for names in parts.values() for name in names]
    asked = set(re.findall(r"\w+", f"{by} {options.per or ''}"))
    if asked & {*FROM_RUN} - {*known}:
        raise SpecError(
            f"--by {options.by} needs an online model; give --run with a run that recorded selections, or --online with a "
            "second score table"
        )
    if spec.format == "webdataset" and (asked - set(known) or options.uid == VIEW):
        parts["m"] = tuple(name for name in add_metadata(connection, [spec]) if name not in (*known, "dataset"))
        joined.append(f"LEFT JOIN {VIEW} m ON (s.shard, s.key) = (m.shard, m.key)")
    fields = ", ".join(f'{part}."{name}"' for part, names in parts.items() for name in names)
    per = f"PARTITION BY ({options.per}) " if options.per is not None else ""
    direction = "DESC" if options.highest else "ASC"
    share, rows = options.keep
    valued = f"SELECT *, ({by})::DOUBLE AS {VALUE} FROM (SELECT {fields} FROM {' '.join(joined)})"
    sql = (
        "SELECT * EXCLUDE (_place, _of) FROM (SELECT *, "
        f'row_number() OVER ({per}ORDER BY {VALUE} {direction}, shard, "row") AS _place, count(*) OVER ({per}) AS _of '
        f"FROM ({valued}) WHERE {HAS_VALUE}) WHERE _place <= {f'round(_of * {share!r})' if share is not None else rows}"
    )
    check_read(sql)
    with _asked_for(options, [name for names in parts.values() for name in names]):
        _columns(connection, valued)
        options.check_order()
        columns = _columns(connection, sql)
        of, with_value = one_row(connection, f"SELECT count(*), count(*) FILTER ({HAS_VALUE}) FROM ({valued})")
    return Selected(connection, f"{sql} {_sorted(columns)}", columns, of, of - with_value, [about(t) for t in tables])


@contextmanager
def _asked_for(options: ExportOptions, known: list[str]) -> Iterator[None]:
    """What DuckDB says of --by and --per in the words of an export. `known` are the columns that they may name."""
    given = f"--by {options.by}" + (f" --per {options.per}" if options.per is not None else "")
    try:
        yield
    except QueryError as e:
        missing = re.search(r'Referenced column "([^"]+)" not found', str(e))
        told = f"there is no column '{missing[1]}'; {did_you_mean(missing[1], known)}" if missing else str(e)
        raise QueryError(f"{given}: {told}") from None


def _run_of(options: ExportOptions) -> str:
    """The folder of --run, which may also be a run's name, as SQL has it: then it is below --runs."""
    run = (options.run or "").rstrip("/")
    by_name = join_url(options.runs, run)
    is_name = run and "/" not in run and not exists(join_url(run, "config.json"))
    return by_name if is_name and exists(join_url(by_name, "config.json")) else run


def _sorted(columns: tuple[str, ...]) -> str:
    """By shard, and in a shard's own order where it is known: the same rows give the same bytes."""
    return 'ORDER BY shard, "row", key' if "row" in columns else "ORDER BY shard, key"


def _name_rows(connection: duckdb.DuckDBPyConnection, name: str, table: ScoreTable) -> None:
    """A view of one table's rows."""
    rows = parquet_sql(f"{open_root(connection, table.folder)}/*{ENDING}", SCORES_COLUMNS, {})
    try:
        connection.execute(f"CREATE VIEW {name} AS {rows}")
    except (duckdb.Error, OSError) as e:
        raise QueryError(f"{table.folder}: {error_line(e)}") from None


def _selections(connection: duckdb.DuckDBPyConnection, run: str, given: str, spec: DatasetSpec) -> str:
    """SQL: what a run recorded of each example, over all steps that drew it. Raises SpecError where that is nothing."""
    found = connection.execute("SELECT dataset FROM runs WHERE run = $run", {"run": run}).fetchall()
    if not found:
        raise SpecError(f"--run {given}: no run there; give the folder of a run, such as runs/NAME")
    if found[0][0] != spec.name:
        raise SpecError(f"--run {given}: trained on data set '{found[0][0]}', the export is of '{spec.name}'")
    of_run = f"FROM selections WHERE run = {literal(run)}"
    if not one_row(connection, f"SELECT count(*) FROM (SELECT 1 {of_run} LIMIT 1)")[0]:
        raise SpecError(f"--run {given}: it recorded no selections; give a run of a policy that selects")
    return (
        "SELECT shard, key, avg(online_loss) AS online_loss, avg(score) AS score, count(*) AS drawn, "
        f"count(*) FILTER (selected) AS selected {of_run} GROUP BY shard, key"
    )


def _columns(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, ...]:
    try:
        return tuple(connection.sql(sql).columns)
    except (duckdb.Error, OSError) as e:
        raise QueryError(error_line(e)) from None
