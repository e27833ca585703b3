"""What `curate inspect` reads: a data set's shards and sources, and the rows of score tables as DuckDB tables."""

from __future__ import annotations

import glob
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import duckdb
import pyarrow as pa

from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..datasets.storage import join_url
from ..errors import CurateError, QueryError, TableError
from ..scoring.tables.counts import all_counts
from ..scoring.tables.lookup import ScoreTable
from ..scoring.tables.schema import ENDING
from ..units import counted
from .sql import error_line, parquet_sql
from .views import SCORES_COLUMNS, open_root

WIDE = ("image_embedding", "text_embedding")
COLUMNS = {name: kind for name, kind in SCORES_COLUMNS.items() if name not in WIDE}
MOST_SOURCES = 100
T = TypeVar("T")


def both_ends(rows: Sequence[T], most: int) -> list[T]:
    """The first and the last of the rows, half of `most` each; all rows where they are no more than `most`."""
    return list(rows) if len(rows) <= most else [*rows[: most // 2], *rows[-(most // 2) :]]


@dataclass(frozen=True)
class Data:
    """A data set as a page needs it: `shards` by name, and of each shard its source (empty where there is but one).

    Without `spec` there are no images, and `why` says why. `given`: the user named this data set.
    """

    name: str
    spec: DatasetSpec | None
    shards: Mapping[str, Shard] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    given: bool = False

    def refuse_other(self, found: Iterable[str], where: str) -> None:
        """Raises TableError where the user named the data set and it has none of the shards that `where` has."""
        if self.given and self.spec is not None and not any(found):
            raise TableError(
                f"{where}: none of its shards is one of data set '{self.spec.name}' (by name and size); give the data set "
                f"that it was made of, '{self.name}', or one with the same shards: --dataset"
            )

    def class_name(self, label: int | None) -> str:
        classes = self.spec.classes if self.spec else ()
        if label is None:
            return "?"
        return classes[label] if 0 <= label < len(classes) else f"class {label}"


def find_data(name: str, given: str | None, config: Config) -> Data:
    """The data set that was scored or trained on. Raises CurateError for one that the user names and that is not there."""
    try:
        spec = find_dataset(given or name, config)
        shards = list_shards(spec)
    except CurateError as e:
        if given:
            raise
        return Data(name, None, why=str(e))
    return Data(name, spec, {s.name: s for s in shards}, _sources(spec, shards), given=given is not None)


def _sources(spec: DatasetSpec, shards: list[Shard]) -> dict[str, str]:
    """Of each shard the pattern of `train` that matches it; of one pattern alone, its folder."""
    found: dict[str, str] = {}
    if len(spec.train) > 1:
        of_url = {s.url: pattern for pattern in spec.train for s in list_shards(replace(spec, train=(pattern,)))}
        found = {s.name: of_url.get(s.url, "?") for s in shards}
        common = _common(found.values())
        found = {shard: source[common:] for shard, source in found.items()}
    elif spec.format != "folder":
        found = {s.name: s.url.rpartition("/")[0].rpartition("/")[2] for s in shards}
    return found if 1 < len(set(found.values())) <= MOST_SOURCES else {}


def _common(paths: Iterable[str]) -> int:
    """How many characters of the folders that all paths begin with."""
    first, last = min(paths), max(paths)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first.rfind("/", 0, same) + 1


@dataclass(frozen=True)
class Rows:
    """A score table's rows, as a DuckDB table `name` of `connection`: COLUMNS, `source`, and `imaged`, which says that
    the example's shard may be read for images."""

    connection: duckdb.DuckDBPyConnection
    name: str
    table: ScoreTable
    data: Data
    columns: frozenset[str]
    total: int
    read: int
    failures: int
    shards: tuple[str, ...]
    """The shards that were read, in random order."""
    shards_of: int
    imaged_of: int

    @property
    def reference(self) -> str:
        """The last part of its name, and the beginning of its fingerprint."""
        name = str(self.table.manifest["reference"]["name"]).rstrip("/").rpartition("/")[2]
        return f"{name} ({self.table.reference_fingerprint[:8]})"

    @property
    def has_classes(self) -> bool:
        return "label" in self.columns

    @property
    def measure(self) -> str:
        """What examples are ordered by: the loss, or the similarity of image and caption, where that is the loss's negative."""
        return "similarity" if "similarity" in self.columns else "loss"

    @property
    def group(self) -> str | None:
        """SQL of what rows are grouped by: their class, else their source."""
        return "label" if self.has_classes else "source" if self.data.sources else None

    def group_name(self, value: object) -> str:
        return self.data.class_name(value) if isinstance(value, int) else str(value)

    def sample_line(self) -> str:
        """What was read."""
        if self.read == self.total:
            return f"All {self.total:,} scored examples in {counted(self.shards_of, 'shard')} were read."
        return (
            f"A sample: {self.read:,} of {self.total:,} scored examples, those of {len(self.shards):,} of "
            f"{self.shards_of:,} shards, drawn at random. Counts are of the sample."
        )

    def image_line(self) -> str:
        """Which examples may be shown."""
        if self.data.spec is None:
            return f"Images are not shown: {self.data.why}."
        if self.imaged_of == len(self.shards):
            return ""
        if not self.imaged_of:
            return f"Images are not shown: data set '{self.data.spec.name}' has other shards now than were scored."
        return f"Examples that are shown come from {self.imaged_of:,} of {len(self.shards):,} shards, drawn at random."


def shuffled(names: Iterable[str]) -> list[str]:
    """In an order that is random and always the same."""
    return sorted(names, key=lambda name: (zlib.crc32(name.encode()), name))


def imaged_shards(data: Data, names: Iterable[str], most_bytes: int) -> set[str]:
    """The first of `names` whose shards have `most_bytes` in all; at least one."""
    found: set[str] = set()
    read = 0
    for shard in (data.shards[name] for name in names if name in data.shards):
        read += shard.bytes
        if found and read > most_bytes:
            break
        found.add(shard.name)
    return found


def add_rows(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    table: ScoreTable,
    data: Data,
    *,
    rows: int,
    image_bytes: int,
    only: set[str] | None = None,
) -> Rows:
    """Read about `rows` rows of a score table, whole shards of it. `only` are the shards that may be read.

    Raises TableError where the data set has other fields now, and where nothing is scored.
    """
    if data.spec is not None and table.manifest["dataset_fingerprint"] != data.spec.fingerprint:
        raise TableError(
            f"{table.folder}: made of data set {table.manifest['dataset_fingerprint']}, '{data.spec.name}' is now "
            f"{data.spec.fingerprint} (other fields or classes); give the data set that was scored: --dataset"
        )
    counts = {shard: c for shard, c in all_counts(table.folder).items() if only is None or shard in only}
    unchanged = {n: s for n, s in data.shards.items() if n in counts and counts[n].shard_size == s.size}
    data.refuse_other(unchanged, table.folder)
    data = replace(data, shards=unchanged)
    total = sum(c.examples for c in counts.values())
    if not total:
        raise TableError(f"{table.folder}: nothing is scored yet; run 'curate score-reference' first")
    chosen, read = list[str](), 0
    for shard in shuffled(counts):
        if chosen and read >= rows:
            break
        chosen.append(shard)
        read += counts[shard].examples
    imaged = imaged_shards(data, chosen, image_bytes)
    root = open_root(connection, table.folder)
    files = [join_url(root, glob.escape(shard) + ENDING) for shard in chosen]
    about = {
        "name": chosen,
        "source": [data.sources.get(shard) for shard in chosen],
        "imaged": [shard in imaged for shard in chosen],
    }
    try:
        connection.register("_about", pa.table(about))
        connection.execute(
            f"CREATE TABLE {name} AS SELECT r.*, a.source, a.imaged FROM ({parquet_sql(files, COLUMNS, {})}) r "
            "JOIN _about a ON r.shard = a.name"
        )
        connection.unregister("_about")
        (filled,) = connection.execute(
            f"SELECT {', '.join(f'count({column}) > 0' for column in COLUMNS)} FROM {name}"
        ).fetchall()
    except (duckdb.Error, OSError) as e:
        raise QueryError(f"{table.folder}: {error_line(e)}") from None
    columns = frozenset(column for column, known in zip(COLUMNS, filled, strict=True) if known)
    failures = sum(c.failures for c in counts.values())
    return Rows(connection, name, table, data, columns, total, read, failures, tuple(chosen), len(counts), len(imaged))
