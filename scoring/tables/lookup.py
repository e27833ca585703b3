"""Reading scores: a table, its shards as flat arrays, the check of all rows, and the verified lookup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...datasets.patterns import other_spelling
from ...datasets.storage import exists, glob, is_folder, join_url, list_versions, open_read, read_bytes
from ...datasets.targets import TARGETS, hash_target
from ...errors import JoinError, ReadError, SpecError, TableError
from .checked import Passed, note_passed, passed_before
from .read import finished_shards, is_score_file, read_about, read_manifest
from .schema import ALWAYS, ENDING, FAILURES, MANIFEST, PLACES

if TYPE_CHECKING:
    import torch

# What every run's folder has.
RUN = "config.json"
# Shards whose scores `lookup` keeps: two for each lane.
RECENT = 64


@dataclass(frozen=True)
class ShardScores:
    """One shard's stored scores as flat arrays, in the shard's order. Embeddings are float16 [N, D] or None; so are
    logits [N, C]."""

    shard: str
    shard_size: int
    keys: list[str]
    row: np.ndarray
    target_hash: np.ndarray
    loss: np.ndarray
    image_embedding: np.ndarray | None
    text_embedding: np.ndarray | None
    failed_keys: frozenset[str]
    label: np.ndarray | None = None
    logits: np.ndarray | None = None

    @cached_property
    def places(self) -> dict[str, int]:
        """Each key's row in the arrays."""
        return {key: i for i, key in enumerate(self.keys)}


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
        """D of the stored embeddings. Raises TableError where the table has no embeddings or no shard yet."""
        if not self.manifest["embeddings"] or not self._names:
            raise TableError(
                f"{self.folder}: holds no embeddings; run score-reference with --embeddings into a new --out"
            )
        return self._vector_width("image_embedding")

    def _vector_width(self, column: str) -> int:
        with self._opened(min(self._names)) as (parquet, _):
            return int(parquet.schema_arrow.field(column).type.list_size)

    @cached_property
    def logit_width(self) -> int:
        """C of the stored logits. Raises TableError where the table has no logits or no shard yet."""
        if not self.manifest.get("logits") or not self._names:
            raise TableError(f"{self.folder}: holds no logits; run score-reference with --logits into a new --out")
        return self._vector_width("logits")

    def shard_names(self) -> set[str]:
        return finished_shards(self.folder)

    @cached_property
    def _names(self) -> set[str]:
        return self.shard_names()

    def holds(self, shard: str) -> bool:
        """Whether a shard is scored. The table lists its shards once, at the first call."""
        return shard in self._names

    def take_in(self, shard: str) -> None:
        """Know a shard that was scored after the table listed its shards. Its rows are checked as by `check`."""
        self._check_shard(shard)
        self._names.add(shard)

    def read(self, columns: Sequence[str] | None = None, shards: Sequence[str] | None = None) -> pa.Table:
        """The whole table, or some of its columns or shards, in memory."""
        names = sorted(self.shard_names()) if shards is None else shards
        if not names:
            raise TableError(f"{self.folder}: no shard is scored yet, or none was asked for; nothing to read")
        return pa.concat_tables([self._read_file(name, columns)[0] for name in names])

    def shard(self, name: str, *, embeddings: bool = False, logits: bool = False) -> ShardScores:
        """One shard's scores. Raises TableError where the file is missing, damaged, or of another reference."""
        columns = ["key", "row", "target_hash", "loss"]
        if self._has_labels:
            columns.append("label")
        if embeddings:
            columns += ["image_embedding", "text_embedding"]
        if logits:
            columns.append("logits")
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
            label=table["label"].to_numpy() if self._has_labels else None,
            logits=_vectors(table["logits"]) if logits else None,
        )

    def places(self, name: str, shard_size: int) -> dict[str, tuple[int, int] | None]:
        """Where each scored image of a shard lies in its file, by key, as `Example.place` has it.

        Raises TableError where the table is older than these columns, or the shard's size is not the one that was scored.
        """
        kind = next((fields for fields in PLACES.values() if fields[0].name in self._columns_of(name)), None)
        if kind is None:
            raise TableError(
                f"{self.folder}: does not say where images lie, as older versions did not; run score-reference into a new --out"
            )
        table, about = self._read_file(name, ["key", *(field.name for field in kind)])
        if about["shard_size"] != shard_size:
            raise TableError(
                f"{self.folder}: shard '{name}' was scored at size {about['shard_size']} and is now {shard_size}; run "
                "score-reference into a new --out"
            )
        keys, *pairs = (table[column].to_pylist() for column in ("key", *(field.name for field in kind)))
        return {key: None if a is None else (a, b) for key, a, b in zip(keys, *pairs, strict=True)}

    def _columns_of(self, name: str) -> list[str]:
        with self._opened(name) as (parquet, _):
            return list(parquet.schema_arrow.names)

    @property
    def _has_labels(self) -> bool:
        """Whether targets are class numbers. Of captions the table has only hashes."""
        target = TARGETS.get(self.manifest.get("task", ""))
        return target is not None and target.has_classes

    def lookup(
        self,
        shards: Sequence[str],
        keys: Sequence[str],
        *,
        targets: torch.Tensor | Sequence[int | str],
        on_missing: Literal["error", "nan"] = "error",
    ) -> torch.Tensor:
        """The stored losses of B examples, float32 [B], each verified by its target: its label or its caption.

        This is the join that training uses. (shard, key) identifies an example. `targets` are labels int64 [B] (or class
        names as they are stored), or captions, with or without the white space around them. With `on_missing="nan"` the
        loss of an example that was not scored is NaN. Raises JoinError, which names shard, key and both values, where
        the target is not the one that was scored, and where a score is missing; TableError where a shard's file is
        damaged.
        """
        import torch

        if on_missing not in ("error", "nan"):
            raise SpecError(f"on_missing is '{on_missing}', expected error or nan")
        given = targets.tolist() if isinstance(targets, torch.Tensor) else list(targets)
        if not len(shards) == len(keys) == len(given):
            raise SpecError(
                f"{len(shards)} shards, {len(keys)} keys and {len(given)} targets are given, expected equal numbers"
            )
        found = []
        for shard, key, target in zip(shards, keys, given, strict=True):
            scores = self.recent(shard) if self.holds(shard) else None
            place = scores.places.get(key) if scores is not None else None
            if scores is None or place is None:
                if on_missing == "nan":
                    found.append(float("nan"))
                    continue
                raise JoinError(
                    f"shard '{shard}', key '{key}': expected a score, found none in {self.folder}; run score-reference "
                    "again, or look up with on_missing='nan'"
                )
            _check_target(scores, place, target)
            found.append(float(scores.loss[place]))
        return torch.tensor(found, dtype=torch.float32)

    @cached_property
    def recent(self) -> Callable[[str], ShardScores]:
        """`shard`, which keeps the scores of recent shards in memory: a batch has examples of some dozens of shards."""
        return lru_cache(maxsize=RECENT)(self.shard)

    def check(self, workers: int = 8, *, remember: bool = False) -> tuple[int, int]:
        """Read every file's keys, rows and losses. Returns (examples, failures).

        With `remember`, the files of a large table that passed before and did not change are not read again. Raises
        TableError at the first loss that is NaN or infinite, row out of order, or repeated key.
        """
        listed = list_versions(self.folder)
        versions = {n.removesuffix(ENDING): listed[n] for n in sorted(listed) if is_score_file(n)}
        if not versions:
            raise TableError(f"{self.folder}: no shard is scored yet; run 'curate score-reference' first")
        passed = passed_before(self.folder, self.reference_fingerprint, versions) if remember else {}
        new = [name for name in versions if name not in passed]
        with ThreadPoolExecutor(workers) as pool:
            passed |= dict(zip(new, pool.map(self._check_shard, new), strict=True))
        if remember and new:
            note_passed(self.folder, self.reference_fingerprint, versions, passed)
        return sum(p.examples for p in passed.values()), sum(p.failures for p in passed.values())

    def _check_shard(self, name: str) -> Passed:
        table, about = self._read_file(name, ["shard", "row", "key", "loss"])
        loss, row = table["loss"].to_numpy(), table["row"].to_numpy()
        where = f"{self.folder}/{name}{ENDING}"
        if not np.isfinite(loss).all():
            bad = int(np.flatnonzero(~np.isfinite(loss))[0])
            raise TableError(f"{where}: the loss of key '{table['key'][bad]}' is {loss[bad]}; score this shard again")
        if (np.diff(row) <= 0).any():
            raise TableError(f"{where}: rows are out of order or repeated; delete the file and score this shard again")
        if pc.count_distinct(table["key"]).as_py() != table.num_rows:
            raise TableError(f"{where}: a key occurs twice; delete the file and score this shard again")
        if table.num_rows and pc.unique(table["shard"]).to_pylist() != [name]:
            raise TableError(f"{where}: holds rows of shard '{table['shard'][0]}'; the file was renamed or copied")
        return Passed(table.num_rows, about["failures"])

    def _read_file(self, name: str, columns: Sequence[str] | None) -> tuple[pa.Table, dict[str, Any]]:
        with self._opened(name) as (parquet, about):
            known = parquet.schema_arrow.names
            for column in {*(columns or ())} - {*known}:
                if column not in ALWAYS:
                    raise TableError(f"{self.folder}: has no column '{column}', only {', '.join(known)}")
                raise KeyError(f"no column '{column}'")
            return parquet.read(columns=columns), about

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[pq.ParquetFile, dict[str, Any]]]:
        """A shard's file and its own metadata. Only the columns that are read are fetched: embeddings are most of a file."""
        url = join_url(self.folder, name + ENDING)
        try:
            with open_read(url, parts=True) as file:
                parquet = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
                about = read_about(parquet.schema_arrow.metadata)
                if about["reference_fingerprint"] != self.reference_fingerprint:
                    raise TableError(
                        f"{url}: scored by reference {about['reference_fingerprint'][:8]}, "
                        f"the table's is {self.reference_fingerprint[:8]}; delete the file and score this shard again"
                    )
                yield parquet, about
        except ReadError:
            raise
        except FileNotFoundError:
            raise TableError(f"{url}: shard '{name}' is not scored; run 'curate score-reference' again") from None
        except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as e:
            raise TableError(f"{url}: damaged or not a score file ({e}); delete it and score again") from None


def open_scores(path: str) -> ScoreTable:
    """Open a score table: its folder, or a folder above that holds exactly one. Raises TableError."""
    if not path:
        raise TableError("the path of the score table is empty; give its folder or URL")
    if exists(join_url(path, MANIFEST)):
        folder = path.rstrip("/")
    else:
        found = [url for depth in ("*", "*/*") for url in glob(join_url(path, depth, MANIFEST))]
        if not found:
            raise TableError(f"{path}: {_instead(path)}")
        if len(found) > 1:
            choices = ", ".join(sorted(f.removesuffix("/" + MANIFEST) for f in found))
            raise TableError(f"{path}: {len(found)} score tables there, expected one: {choices}; give a table's folder")
        folder = found[0].removesuffix("/" + MANIFEST)
    manifest = read_manifest(folder)
    assert manifest is not None
    return ScoreTable(folder, manifest)


def _instead(path: str) -> str:
    """What is there in place of a score table, and what to do."""
    if exists(join_url(path, RUN)):
        return "is a run, no score table; give the folder of a table, which 'curate score-reference' writes"
    runs = sorted(glob(join_url(path, "*", RUN)))
    if runs:
        names = ", ".join(join_url(path, run.split("/")[-2]) for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
        return f"holds runs ({names}) and no score table; give the folder of one run, or of a score table"
    if not exists(path):
        spelled = other_spelling(path) or "; 'curate score-reference' writes score tables, 'curate train' writes runs"
        return f"no such folder{spelled}"
    if not is_folder(path):
        return "is a file; give the folder of a score table"
    return "0 score tables there, expected one; give a table's folder"


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size-list column as one [N, D] float16 array, without a Python loop over rows."""
    array = column.combine_chunks()
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(array), array.type.list_size)


def _check_target(scores: ShardScores, place: int, target: int | str) -> None:
    """Raises JoinError where a target is not the one that was scored."""
    if not isinstance(target, str):
        stored = None if scores.label is None else int(scores.label[place])
        if stored is None or stored != target:
            raise JoinError(
                f"shard '{scores.shard}', key '{scores.keys[place]}': the label is {target}, the score table has "
                f"{stored if stored is not None else 'captions'}; labels changed since scoring: run score-reference into a "
                "new --out"
            )
        return
    stored_hash, bare = int(scores.target_hash[place]), target.strip()
    # The hash is of the stored bytes. Readers of captions often strip the line break at the end of a text file.
    if stored_hash not in {hash_target(text.encode()) for text in (target, bare, f"{bare}\n", f"{bare}\r\n")}:
        raise JoinError(
            f"shard '{scores.shard}', key '{scores.keys[place]}': the hash of {target[:60]!r} is "
            f"{hash_target(target.encode()):016x}, the score table has {stored_hash:016x}; labels or captions changed since "
            "scoring: run score-reference into a new --out"
        )
