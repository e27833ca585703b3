"""The score table on disk: one Parquet file a data shard, which appears whole or not at all and so marks itself done.

    SCORES/dataset=D/reference=NAME-FINGERPRINT8/
        SHARD.parquet  _failures/SHARD.parquet  _errors/SHARD.json  _manifest.json

Failures lie in a folder of their own, so that `scores/*/*/*.parquet` is the scores and nothing else;
and every name that is not scores starts with `_` or `.`, which Arrow, Spark and Polars pass over.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import __version__
from ..datasets.readers import Failure, to_bytes
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec, Task
from ..datasets.storage import (
    exists,
    filesystem,
    is_local,
    join_url,
    list_names,
    patiently,
    read_bytes,
    remove,
    remove_partials,
    write_atomically,
)
from ..errors import BusyError, TableError

MANIFEST = "_manifest.json"
ENDING = ".parquet"
FAILURES, ERRORS = "_failures", "_errors"
FORMAT_VERSION = 1
FAILURE_SCHEMA = pa.schema(
    [("shard", pa.string()), ("row", pa.int32()), ("key", pa.string()), ("stage", pa.string()), ("reason", pa.string())]
)
LOSS_NAMES: Mapping[str, str] = {"classification": "cross-entropy", "image-text": "negative-dot-product"}


def score_schema(task: Task, embedding_width: int = 0) -> pa.Schema:
    """Columns of a score file. `loss` is the scoring loss; `row` counts all examples of the shard, bad ones too."""
    columns = [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("target_hash", pa.uint64(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
    ]
    if task == "classification":
        columns += [pa.field("label", pa.int32(), nullable=False), pa.field("predicted", pa.int32(), nullable=False)]
    else:
        columns += [pa.field("similarity", pa.float32(), nullable=False)]
    if embedding_width:
        vector = pa.list_(pa.field("element", pa.float16(), nullable=False), embedding_width)
        columns += [pa.field("image_embedding", vector), pa.field("text_embedding", vector)]
    return pa.schema(columns)


def table_folder(root: str, spec: DatasetSpec, reference_name: str, reference_fingerprint: str) -> str:
    """Where the scores of this reference over this data set lie: hive-partitioned, one folder for each pair."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", reference_name.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "model"
    return join_url(root, f"dataset={spec.name}", f"reference={plain}-{reference_fingerprint[:8]}")


def shards_digest(shards: Sequence[Shard]) -> str:
    """16 hex digits of every shard's name and size: whether the data set is still the one last scored."""
    lines = "\n".join(sorted(f"{shard.name} {shard.size}" for shard in shards))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def commit_shard(folder: str, shard: Shard, scores: pa.Table, failures: Sequence[Failure], meta: dict[str, Any]) -> int:
    """Write a shard's failures, then its scores (the mark that it is done). Returns the bytes written."""
    about = {"shard_size": shard.size, "examples": scores.num_rows, "failures": len(failures), **meta}
    written = 0
    failures_url = join_url(folder, FAILURES, shard.name + ENDING)
    if failures:
        columns = {name: [getattr(f, name) for f in failures] for name in FAILURE_SCHEMA.names}
        content = to_bytes(pa.Table.from_pydict(columns, schema=FAILURE_SCHEMA), compression="zstd")
        write_atomically(failures_url, content)
        written += len(content)
    else:
        remove(failures_url)  # of an attempt at other data, killed before its scores
    # Embeddings are noise to a compressor: plain bytes read faster and take no more room.
    vectors = [name for name in scores.schema.names if name.endswith("_embedding")]
    content = to_bytes(
        scores.replace_schema_metadata({"curate": json.dumps(about)}),
        compression={name: "none" if name in vectors else "zstd" for name in _leaf_columns(scores.schema)},
        use_dictionary=["shard"],
        write_page_checksum=True,
    )
    write_atomically(join_url(folder, shard.name + ENDING), content)
    return written + len(content)


def _leaf_columns(schema: pa.Schema) -> list[str]:
    return [f"{f.name}.list.element" if pa.types.is_fixed_size_list(f.type) else f.name for f in schema]


def finished_shards(folder: str) -> set[str]:
    """Names of the shards whose scores are committed."""
    return {n.removesuffix(ENDING) for n in list_names(folder) if n.endswith(ENDING) and not n.startswith(".")}


def row_count(folder: str, name: str) -> int:
    return int(_footer(folder, name).num_rows)


def _footer(folder: str, name: str) -> pq.FileMetaData:
    """A score file's own metadata, without reading the rest of it."""
    fs, path = filesystem(join_url(folder, name + ENDING))

    def read() -> pq.FileMetaData:
        with fs.open(path, "rb") as file:
            return pq.read_metadata(file)

    return patiently(read)


class ShardCounts(NamedTuple):
    """What a score file's metadata tells. `flops` is what scoring it took; None in files that do not know."""

    examples: int
    failures: int
    shard_size: int
    flops: float | None


def _about(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What a score file says of itself. Raises KeyError, TypeError or ValueError where it is not all there."""
    about: dict[str, Any] = json.loads(metadata[b"curate"])
    for name, kind in {"examples": int, "failures": int, "shard_size": int, "reference_fingerprint": str}.items():
        if not isinstance(about[name], kind):
            raise TypeError(f"{name} is {about[name]!r}")
    return about


def shard_counts(folder: str, name: str) -> ShardCounts:
    """A score file's own metadata, without its rows. Raises TableError where it is damaged."""
    try:
        about = _about(_footer(folder, name).metadata)
    except Exception as e:  # pyarrow raises ArrowInvalid, OSError, or a KeyError follows
        if isinstance(e, OSError) and e.errno:  # pyarrow's own OSErrors have no number
            raise TableError(
                f"{folder}/{name}{ENDING}: cannot be read ({e.strerror}); run the same command again"
            ) from e
        raise TableError(f"{folder}/{name}{ENDING}: damaged ({e}); delete it and run the same command again") from None
    return ShardCounts(about["examples"], about["failures"], about["shard_size"], about.get("flops"))


def note_error(folder: str, shard: Shard, message: str) -> None:
    """Leave word of a shard that could not be read, for the job's end and for whoever looks at the folder."""
    content = json.dumps({"shard": shard.name, "url": shard.url, "error": message}).encode()
    write_atomically(join_url(folder, ERRORS, shard.name + ".json"), content)


def error_names(folder: str) -> list[str]:
    """Names of the shards that could not be read."""
    names = list_names(join_url(folder, ERRORS))
    return [n.removesuffix(".json") for n in names if n.endswith(".json") and not n.startswith(".")]


def noted_errors(folder: str) -> dict[str, str]:
    """Shard name to error, of every shard that could not be read."""
    return {name: noted_error(folder, name) for name in error_names(folder)}


def noted_error(folder: str, name: str) -> str:
    """Why a shard could not be read. Raises FileNotFoundError where it could."""
    return str(json.loads(read_bytes(join_url(folder, ERRORS, name + ".json")))["error"])


def clear_error(folder: str, name: str) -> None:
    remove(join_url(folder, ERRORS, name + ".json"))


def write_manifest(folder: str, manifest: Mapping[str, Any]) -> None:
    content = {"format": FORMAT_VERSION, "code_version": __version__, **manifest}
    write_atomically(join_url(folder, MANIFEST), json.dumps(content, indent=2, sort_keys=True).encode())


def read_manifest(folder: str) -> dict[str, Any] | None:
    """The manifest of a table, or None where there is none yet. Raises TableError where it is damaged."""
    try:
        content: dict[str, Any] = json.loads(read_bytes(join_url(folder, MANIFEST)))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as e:
        raise TableError(f"{folder}/{MANIFEST}: damaged ({e}); delete it and run score-reference again") from None
    if content.get("format") != FORMAT_VERSION:
        raise TableError(f"{folder}: table format {content.get('format')}, this version reads {FORMAT_VERSION}")
    return content


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Hold the table for one job. The lock dies with its process, so a killed job never blocks the next, which
    clears up what it left half-written.

    Only local folders are locked; on object stores two jobs would do the same work twice, never mix it: every shard
    is one put of the same content.
    """
    if not is_local(folder):
        yield
        return
    path = os.path.join(filesystem(folder)[1], ".lock")
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise BusyError(f"{folder}: {owner} is writing this table; wait for it or stop it") from None
        with suppress(OSError):  # a full disk: the lock holds, only its owner's name is missing
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()}".encode())
        remove_partials(os.path.dirname(path))
        try:
            yield
        finally:
            remove_partials(os.path.dirname(path))


@dataclass(frozen=True)
class ShardScores:
    """One shard's stored scores as flat arrays, in the shard's order. Embeddings are float16 [N, D] or None."""

    shard: str
    shard_size: int
    keys: list[str]
    row: np.ndarray
    target_hash: np.ndarray
    loss: np.ndarray
    image_embedding: np.ndarray | None
    text_embedding: np.ndarray | None
    failed_keys: frozenset[str]


class ScoreTable:
    """A committed score table, for reading. Made by `open_scores`."""

    def __init__(self, folder: str, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def reference_fingerprint(self) -> str:
        return str(self.manifest["reference"]["fingerprint"])

    @cached_property
    def embedding_width(self) -> int:
        """D of the stored embeddings. Raises TableError where the table has none, or no shard yet."""
        if not self.manifest["embeddings"] or not self._names:
            raise TableError(
                f"{self.folder}: holds no embeddings; run score-reference with --embeddings into a new --out"
            )
        return int(self._read_file(min(self._names), ["image_embedding"])[0]["image_embedding"].type.list_size)

    def shard_names(self) -> set[str]:
        return finished_shards(self.folder)

    @cached_property
    def _names(self) -> set[str]:
        return self.shard_names()

    def holds(self, shard: str) -> bool:
        """Whether a shard was scored when this table was first asked."""
        return shard in self._names

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole table (or some columns) in memory; for analysis of what fits there."""
        parts = [self._read_file(name, columns)[0] for name in sorted(self.shard_names())]
        return pa.concat_tables(parts)

    def shard(self, name: str, *, embeddings: bool = False) -> ShardScores:
        """One shard's scores. Raises TableError where the file is missing, damaged, or of another reference."""
        columns = ["key", "row", "target_hash", "loss"]
        if embeddings:
            columns += ["image_embedding", "text_embedding"]
        table, about = self._read_file(name, columns)
        failed: frozenset[str] = frozenset()
        if about["failures"]:
            url = join_url(self.folder, FAILURES, name + ENDING)
            try:
                failed = frozenset(pq.read_table(pa.BufferReader(read_bytes(url)))["key"].to_pylist())
            except (FileNotFoundError, KeyError, pa.ArrowException) as e:
                raise TableError(f"{url}: missing or damaged ({e}); delete {name}{ENDING} and score again") from None
        return ShardScores(
            shard=name,
            shard_size=about["shard_size"],
            keys=table["key"].to_pylist(),
            row=table["row"].to_numpy(),
            target_hash=table["target_hash"].to_numpy(),
            loss=table["loss"].to_numpy(),
            image_embedding=_vectors(table["image_embedding"]) if embeddings else None,
            text_embedding=_vectors(table["text_embedding"]) if embeddings else None,
            failed_keys=failed,
        )

    def check(self, workers: int = 8) -> tuple[int, int]:
        """Read every file's keys, rows and losses. Returns (examples, failures).

        Raises TableError at the first loss that is NaN or infinite, row out of order, or key that is there twice.
        """
        names = sorted(self.shard_names())
        if not names:
            raise TableError(f"{self.folder}: no shard is scored yet; run 'curate score-reference' first")
        with ThreadPoolExecutor(workers) as pool:
            counts = list(pool.map(self._check_shard, names))
        return sum(c[0] for c in counts), sum(c[1] for c in counts)

    def _check_shard(self, name: str) -> tuple[int, int]:
        table, about = self._read_file(name, ["shard", "row", "key", "loss"])
        loss, row = table["loss"].to_numpy(), table["row"].to_numpy()
        where = f"{self.folder}/{name}{ENDING}"
        if not np.isfinite(loss).all():
            bad = int(np.flatnonzero(~np.isfinite(loss))[0])
            raise TableError(f"{where}: the loss of key '{table['key'][bad]}' is {loss[bad]}; score this shard again")
        if (np.diff(row) <= 0).any():
            raise TableError(f"{where}: rows are out of order or doubled; delete the file and score this shard again")
        if pc.count_distinct(table["key"]).as_py() != table.num_rows:
            raise TableError(f"{where}: a key is there twice; delete the file and score this shard again")
        if table.num_rows and pc.unique(table["shard"]).to_pylist() != [name]:
            raise TableError(f"{where}: holds rows of shard '{table['shard'][0]}'; the file was renamed or copied")
        return table.num_rows, about["failures"]

    def _read_file(self, name: str, columns: Sequence[str] | None) -> tuple[pa.Table, dict[str, Any]]:
        url = join_url(self.folder, name + ENDING)
        try:
            table = pq.read_table(pa.BufferReader(read_bytes(url)), columns=columns, page_checksum_verification=True)
            about = _about(table.schema.metadata)
        except FileNotFoundError:
            raise TableError(f"{url}: shard '{name}' is not scored; run 'curate score-reference' again") from None
        except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as e:
            raise TableError(f"{url}: damaged or not a score file ({e}); delete it and score again") from None
        if about["reference_fingerprint"] != self.reference_fingerprint:
            raise TableError(
                f"{url}: scored by reference {about['reference_fingerprint'][:8]}, "
                f"the table's is {self.reference_fingerprint[:8]}; delete the file and score this shard again"
            )
        return table, about


def open_scores(path: str) -> ScoreTable:
    """Open a score table: its folder, or a folder above that holds exactly one. Raises TableError."""
    if exists(join_url(path, MANIFEST)):
        folder = path.rstrip("/")
    else:
        fs, root = filesystem(path)
        found = [str(p) for depth in ("*", "*/*") for p in fs.glob(f"{root.rstrip('/')}/{depth}/{MANIFEST}")]
        if len(found) != 1:
            choices = ": " + ", ".join(sorted(f.removesuffix("/" + MANIFEST) for f in found)) if found else ""
            raise TableError(f"{path}: {len(found)} score tables there, expected one{choices}; give a table's folder")
        folder = found[0].removesuffix("/" + MANIFEST)
        folder = folder if is_local(path) else fs.unstrip_protocol(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    return ScoreTable(folder, manifest)


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size-list column as one [N, D] float16 array, without a Python loop over rows."""
    array = column.combine_chunks()
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(array), array.type.list_size)
