"""Whole shards as rows: read, joined with their stored scores, and kept in memory where they fit."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..datasets.batches import map_in_threads
from ..datasets.decoding import View
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..errors import CurateError, ShardError, StorageError, TableError
from ..scoring.settings import OnMissing
from ..scoring.tables.join import join_shard
from ..scoring.tables.keep import Kept
from ..scoring.tables.lookup import ScoreTable, ShardScores

# So many shards are read at a time.
READERS = 8
# Of a data set that is so many times as large as the cache, too little would be found there.
SHARDS_KEPT = 8


@dataclass
class Row:
    """An example with its stored loss and, where its embeddings or logits are asked for, where its shard's scores hold it
    (-1: nowhere).

    `seen` is what the views made of its image, `tokens` its caption by tokenizer (int32 [L]), each once it was needed.
    `prefix` is before its shard's name where its data set is mixed into another.
    """

    example: Example
    reference_loss: float
    scores: ShardScores | None
    score_row: int
    seen: dict[View, Any] = field(default_factory=dict)
    tokens: dict[int, np.ndarray] = field(default_factory=dict)
    prefix: str = ""

    @property
    def shard(self) -> str:
        """The name of its shard, in a super-batch."""
        return self.prefix + self.example.shard


@dataclass(frozen=True)
class LoadedShard:
    """All of a shard: its usable rows, what could not be read, and the rows that the join left out, with the reason.
    `kept` are the rows that a filtered data set keeps of it, ascending; the others are in none of these."""

    rows: list[Row]
    failures: list[Failure]
    left_out: list[tuple[int, str]]
    kept: np.ndarray | None = None

    def place(self, row: int) -> int:
        """Where a row stands in what lanes divide: the shard's rows or, of a filtered data set, those that are kept."""
        if self.kept is None:
            return row
        return min(int(np.searchsorted(self.kept, row)), len(self.kept) - 1)

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.failures) + len(self.left_out)


class UnreadableError(Exception):
    """A shard that cannot be read; `error` says why."""

    def __init__(self, error: CurateError) -> None:
        super().__init__(str(error))
        self.error = error


class SkippedShards:
    """The shards that cannot be read and are left out: `reasons` by name. At most `most` of them."""

    def __init__(self, shards: Sequence[Shard], most: int, reasons: Mapping[str, str] | None = None) -> None:
        self.shards, self.most = shards, most
        self.reasons = dict(reasons or {})
        self._lock = threading.Lock()

    def add(self, index: int, why: UnreadableError) -> None:
        """Leave a shard out. Raises the shard's own error where too many are bad."""
        with self._lock:
            self.reasons[self.shards[index].name] = str(why)
            bad = len(self.reasons)
        if bad <= self.most and bad < len(self.shards):
            return
        more = f"{bad:,} of {len(self.shards):,} shards cannot be read, {self.most:,} may be skipped"
        raise type(why.error)(f"{why}; {more} (--max-bad-shards)") from why


class ShardLoader:
    """Reads and joins shards for all lanes.

    A data set that fits into `host_bytes` stays in memory, unless it `grows`: then `shards` gets longer. So do shards whose
    decoded images, of `image_bytes` each, fit into `cache_bytes`, and with them what was decoded.
    """

    def __init__(
        self,
        dataset: DatasetSpec,
        shards: Sequence[Shard],
        scores: ScoreTable | None,
        *,
        embeddings: bool,
        logits: bool = False,
        on_missing: OnMissing,
        cache_bytes: int,
        image_bytes: int,
        host_bytes: int,
        kept: Kept | None = None,
        prefix: str = "",
        grows: bool = False,
    ) -> None:
        self.prefix = prefix
        self.dataset, self.shards, self.scores, self.kept = dataset, shards, scores, kept
        self.embeddings, self.logits, self.on_missing = embeddings, logits, on_missing
        self._cache: dict[int, LoadedShard] = {}
        self._room = self._cache_bytes = cache_bytes
        self._image_bytes = image_bytes
        self._keeps_decoded: set[str] = set()
        self._bytes = sum(shard.bytes for shard in self.shards)
        self.keeps_all = self._bytes <= host_bytes and not grows
        self._lock = threading.Lock()
        # Two lanes that share a shard must not both read it.
        self._reading: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)

    def keeps(self, row: Row) -> bool:
        """Whether what was decoded of a row may stay in memory."""
        return row.prefix == self.prefix and row.example.shard in self._keeps_decoded

    def load(self, index: int) -> LoadedShard:
        """Raises UnreadableError where the shard cannot be read, JoinError and TableError where its scores do not fit."""
        with self._lock:
            reading = self._reading[index]
        with reading:
            return self._cache[index] if index in self._cache else self._read(index)

    def _read(self, index: int) -> LoadedShard:
        shard = self.shards[index]
        examples: list[Example] = []
        failures: list[Failure] = []
        try:
            for item in read_shard(self.dataset, shard):
                if isinstance(item, Example):
                    examples.append(item)
                else:
                    failures.append(item)
        except (ShardError, StorageError) as e:
            raise UnreadableError(e) from e
        loaded = self._joined(shard, examples, failures)
        for row in loaded.rows:
            row.prefix = self.prefix
        with self._lock:
            room = self._image_bytes * len(loaded.rows) + (0 if self.keeps_all else shard.bytes)
            pays = room * self._bytes <= SHARDS_KEPT * self._cache_bytes * shard.bytes
            fits = pays and room <= self._room and shard.name not in self._keeps_decoded
            if fits:
                self._room -= room
                self._keeps_decoded.add(shard.name)
            if fits or self.keeps_all:
                self._cache.setdefault(index, loaded)
            return self._cache.get(index, loaded)

    def _joined(self, shard: Shard, examples: list[Example], failures: list[Failure]) -> LoadedShard:
        if self.scores is None:
            return LoadedShard([Row(e, float("nan"), None, -1) for e in examples], failures, [])
        if not self.scores.holds(shard.name):
            if self.on_missing == "skip":
                return LoadedShard([], failures, [(e.row, "skipped") for e in examples])
            return LoadedShard([Row(e, float("nan"), None, -1) for e in examples], failures, [])
        stored = self.scores.shard(shard.name, embeddings=self.embeddings, logits=self.logits)
        if stored.shard_size != shard.size:
            raise TableError(
                f"shard '{shard.name}' was scored at size {stored.shard_size} and is now {shard.size}; "
                f"run score-reference into a new --out ({shard.url})"
            )
        joined = join_shard(examples, stored, self.on_missing)
        found = {example.row for example in joined.examples}
        left_out = [
            (e.row, "failed_in_scoring" if e.key in stored.failed_keys else "skipped")
            for e in examples
            if e.row not in found
        ]
        # A table's keys and hashes would otherwise stay in memory.
        scores = stored if self.embeddings or self.logits else None
        places = zip(joined.examples, joined.loss.tolist(), joined.positions.tolist(), strict=True)
        rows = [Row(e, loss, scores, row) for e, loss, row in places]
        if self.kept is None:
            return LoadedShard(rows, failures, left_out)
        kept_N = self.kept.mask(stored)
        return LoadedShard(
            [row for row in rows if kept_N[row.score_row]], failures, left_out, np.sort(stored.row[kept_N])
        )


def read_to_count(loader: ShardLoader, skipped: SkippedShards) -> list[int]:
    """Read the shards, which stay in memory; 0 where one cannot be read."""

    def rows_of(index: int) -> int | UnreadableError:
        try:
            return loader.load(index).count
        except UnreadableError as e:
            return e

    found = map_in_threads(rows_of, range(len(loader.shards)), READERS)
    for index, rows in enumerate(found):
        if isinstance(rows, UnreadableError):
            skipped.add(index, rows)
    return [0 if isinstance(rows, UnreadableError) else rows for rows in found]
