"""Super-batches: B examples drawn uniformly, decoded, joined with their reference losses; resumable to the example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..datasets.batches import decode_all, decode_threads
from ..datasets.decoding import Geometry
from ..datasets.readers import Example, Failure, read_shard, too_many_failures
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..errors import FailuresError, SpecError, TableError
from ..scoring.models import Model
from ..scoring.settings import OnMissing
from ..scoring.tables.lookup import ScoreTable, ShardScores
from .join import join_shard


@dataclass
class Record:
    """An example in the shuffle buffer, its stored loss, where its shard's scores hold it (-1: nowhere), its pixels once
    decoded, where they are kept, and its caption once tokenized (int32 [L], by tokenizer)."""

    example: Example
    reference_loss: float
    scores: ShardScores | None
    score_row: int
    pixels: dict[Geometry, np.ndarray] = field(default_factory=dict)
    tokens: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Position:
    """Where the stream stands: enough to go on with the very next example. JSON-able.

    `carry` are the (shard index, row) left over from the window before, in order.
    """

    epoch: int = 0
    window: int = 0
    offset: int = 0
    carry: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        carry = tuple((int(s), int(r)) for s, r in values["carry"])
        return cls(values["epoch"], values["window"], values["offset"], carry)


@dataclass(frozen=True)
class SuperBatch:
    """B examples. `pixels` uint8 [B, H, W, 3] by geometry; `reference_loss` float32 [B], NaN where it is to be scored.

    `reference_image` and `reference_text` are the stored embeddings, float16 [B, D], None where they were not asked for.
    `position` is where to go on after this batch; `counts` are running totals of what was dropped and why.
    """

    records: list[Record]
    pixels: dict[Geometry, torch.Tensor]
    reference_loss: torch.Tensor
    reference_image: torch.Tensor | None
    reference_text: torch.Tensor | None
    position: Position
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def shards(self) -> list[str]:
        return [record.example.shard for record in self.records]

    @property
    def keys(self) -> list[str]:
        return [record.example.key for record in self.records]

    def targets(self, model: Model) -> torch.Tensor:
        """Labels int64 [B], or this model's caption tokens int64 [B, L]."""
        if model.task.target.has_classes:
            return model.targets([record.example.target for record in self.records])
        # Python tokenizes slower than a small model scores, and epochs come round again.
        kind = id(model.tokenizer)
        new = [record for record in self.records if kind not in record.tokens]
        if new:
            made = model.targets([record.example.target for record in new]).numpy().astype(np.int32)
            for record, tokens_L in zip(new, made, strict=True):
                record.tokens[kind] = tokens_L.copy()
        return torch.from_numpy(np.stack([record.tokens[kind] for record in self.records])).long()


class SuperBatches:
    """An endless, seeded stream of super-batches.

    An epoch visits the shards in random order, a window of them (up to `shuffle_bytes`) in memory at a time; within a
    window the order is uniform. What is left of a window goes on into the next; what is left of an epoch is dropped.
    A data set whose decoded pixels fit in `cache_bytes` is read and decoded once. Order depends on `seed` and the data
    alone, never on timing.
    """

    def __init__(
        self,
        dataset: DatasetSpec,
        shards: Sequence[Shard],
        size: int,
        geometries: Sequence[Geometry],
        *,
        scores: ScoreTable | None = None,
        embedding_width: int = 0,
        on_missing: OnMissing = "error",
        seed: int = 0,
        max_failures: float = 0.01,
        shuffle_bytes: int = 1 << 30,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.dataset, self.shards, self.size = dataset, list(shards), size
        self.geometries = list(dict.fromkeys(geometries))
        self.scores, self.on_missing, self.seed = scores, on_missing, seed
        self.embedding_width = embedding_width
        self.max_failures, self.shuffle_bytes = max_failures, shuffle_bytes
        self._cache: dict[int, list[Record]] = {}
        self._cache_room = cache_bytes
        self._counts: Counter[str] = Counter()
        self._counted: set[int] = set()
        self._bad: set[tuple[str, str]] = set()
        self._index = {shard.name: i for i, shard in enumerate(self.shards)}
        self._pool = ThreadPoolExecutor(decode_threads())

    def stream(self, position: Position | None = None) -> Iterator[SuperBatch]:
        """Super-batches from `position` on, for ever.

        Raises SpecError where an epoch cannot fill a single one, FailuresError where more than `max_failures` of the
        examples are bad, JoinError and ShardError as they are met.
        """
        position = position or Position()
        while True:
            full = 0
            windows = self._windows(position.epoch)
            carry = self._recall(position.carry)
            for window in range(position.window, len(windows)):
                pool = carry + [record for shard in windows[window] for record in self._load(shard)]
                stored = StoredEmbeddings(pool, self.embedding_width) if self.embedding_width else None
                start = tuple((self._index[r.example.shard], r.example.row) for r in carry)
                order = np.random.default_rng((self.seed, position.epoch, window)).permutation(len(pool))
                offset = position.offset if window == position.window else 0
                while True:
                    chosen, next_offset = self._fill(pool, order, offset)
                    batch = [pool[i] for i in chosen]
                    if len(batch) < self.size:
                        carry = batch
                        break
                    offset = next_offset
                    full += 1
                    image, text = stored.gather(chosen) if stored else (None, None)
                    yield self._super_batch(batch, image, text, Position(position.epoch, window, offset, start))
            if not full and position == Position(position.epoch):
                raise SpecError(
                    f"data set '{self.dataset.name}' has {len(carry):,} usable examples, a super-batch needs "
                    f"{self.size:,}; lower --batch-size or --filter-ratio"
                )
            position = Position(position.epoch + 1)

    def _windows(self, epoch: int) -> list[list[int]]:
        """This epoch's shard order, cut into runs of up to `shuffle_bytes`."""
        windows: list[list[int]] = [[]]
        held = 0
        for shard in np.random.default_rng((self.seed, epoch)).permutation(len(self.shards)).tolist():
            size = self.shards[shard].size
            if windows[-1] and held + size > self.shuffle_bytes:
                windows.append([])
                held = 0
            windows[-1].append(shard)
            held += size
        return windows

    def _recall(self, carry: Sequence[tuple[int, int]]) -> list[Record]:
        loaded = {shard: {r.example.row: r for r in self._load(shard)} for shard in {shard for shard, _ in carry}}
        return [loaded[shard][row] for shard, row in carry]

    def _load(self, index: int) -> list[Record]:
        """One shard's usable examples, joined."""
        if index in self._cache:
            return self._cache[index]
        shard = self.shards[index]
        examples: list[Example] = []
        for item in read_shard(self.dataset, shard):
            if isinstance(item, Example):
                examples.append(item)
            else:
                self._fail(item)
        losses = np.full(len(examples), np.nan, dtype=np.float32)
        positions = np.full(len(examples), -1)
        counts: Counter[str] = Counter()
        stored = None
        if self.scores is not None and self.scores.holds(shard.name):
            stored = self.scores.shard(shard.name, embeddings=self.embedding_width > 0)
            if stored.shard_size != shard.size:
                raise TableError(
                    f"shard '{shard.name}' was scored at size {stored.shard_size} and is now {shard.size}; "
                    f"run score-reference into a new --out ({shard.url})"
                )
            examples, losses, counts, positions = join_shard(examples, stored, self.on_missing)
        elif self.scores is not None:
            counts["skipped" if self.on_missing == "skip" else "scored_in_run"] = len(examples)
            if self.on_missing == "skip":
                examples, losses, positions = [], losses[:0], positions[:0]
        joined = zip(examples, losses.tolist(), positions.tolist(), strict=True)
        kept = stored if self.embedding_width else None  # whose keys and hashes would otherwise stay in memory
        records = [Record(example, loss, kept, row) for example, loss, row in joined]
        if index not in self._counted:
            self._counted.add(index)
            self._counts["examples"] += len(records)
            self._counts.update(counts)
        room = sum(3 * g.size * g.size for g in self.geometries) * len(records)
        if room <= self._cache_room:
            self._cache_room -= room
            self._cache[index] = records
        return records

    def _fill(self, pool: list[Record], order: np.ndarray, offset: int) -> tuple[np.ndarray, int]:
        """Where in the pool the next B records that decode are, from `offset` on; fewer at the window's end."""
        chosen = order[:0]
        while len(chosen) < self.size and offset < len(order):
            wanted = order[offset : offset + self.size - len(chosen)]
            offset += len(wanted)
            chosen = np.concatenate([chosen, wanted[self._decoded([pool[i] for i in wanted])]])
        return chosen, offset

    def _decoded(self, records: list[Record]) -> list[bool]:
        """Decode what is not yet, in every geometry; which of the records have all of them."""
        good = [r for r in records if not self._bad or (r.example.shard, r.example.key) not in self._bad]
        for geometry in self.geometries:
            waiting = [r for r in good if geometry not in r.pixels]
            if waiting:
                pixels = decode_all([r.example for r in waiting], geometry, self._pool)
                for record, result in zip(waiting, pixels, strict=True):
                    if isinstance(result, Failure):
                        self._fail(result)
                    else:
                        record.pixels[geometry] = result
        return [len(r.pixels) == len(self.geometries) for r in records]

    def _fail(self, failure: Failure) -> None:
        name = (failure.shard, failure.key)
        if name in self._bad:
            return
        self._bad.add(name)
        self._counts["failures"] = len(self._bad)
        seen = self._counts["examples"] + len(self._bad)
        if too_many_failures(len(self._bad), seen, self.max_failures):
            raise FailuresError(
                f"{len(self._bad):,} of {seen:,} examples read so far are bad (allowed {self.max_failures:.1%}); one of "
                f"them: shard '{failure.shard}', key '{failure.key}', {failure.stage}: {failure.reason}"
            )

    def _super_batch(
        self, batch: list[Record], image: torch.Tensor | None, text: torch.Tensor | None, position: Position
    ) -> SuperBatch:
        pixels = {g: torch.from_numpy(np.stack([r.pixels[g] for r in batch])) for g in self.geometries}
        for record in batch:
            if self._index[record.example.shard] not in self._cache:
                record.pixels.clear()
        losses = torch.tensor([record.reference_loss for record in batch], dtype=torch.float32)
        return SuperBatch(batch, pixels, losses, image, text, position, dict(self._counts))


class StoredEmbeddings:
    """The stored embeddings of a pool of N records, found by their place in it without a Python loop a row."""

    def __init__(self, pool: Sequence[Record], width: int) -> None:
        self._width = width
        self._tables = list({id(r.scores): r.scores for r in pool if r.score_row >= 0}.values())
        number = {id(table): i for i, table in enumerate(self._tables)}
        self._table_N = np.array([number.get(id(r.scores), -1) if r.score_row >= 0 else -1 for r in pool])
        self._row_N = np.array([r.score_row for r in pool])

    def gather(self, chosen_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text embeddings, float16 [B, width], a shard at a time; NaN where the table has none.

        In pinned memory where there is a GPU to copy them to.
        """
        pinned = torch.cuda.is_available()
        image, text = (
            torch.full((len(chosen_B), self._width), torch.nan, dtype=torch.float16, pin_memory=pinned)
            for _ in range(2)
        )
        table_B, row_B = self._table_N[chosen_B], self._row_N[chosen_B]
        for number in np.unique(table_B[table_B >= 0]):
            scores, here = self._tables[number], table_B == number
            assert scores is not None and scores.image_embedding is not None and scores.text_embedding is not None
            image.numpy()[here] = scores.image_embedding[row_B[here]]
            text.numpy()[here] = scores.text_embedding[row_B[here]]
        return image, text


def read_some(dataset: DatasetSpec, shards: Sequence[Shard], count: int) -> list[Example]:
    """Up to `count` examples of the first, the middle and the last shard, for checks before a run."""
    if not shards:
        return []
    chosen = {shard.name: shard for shard in (shards[0], shards[len(shards) // 2], shards[-1])}
    records = (r for shard in chosen.values() for r in islice(read_shard(dataset, shard), -(-count // len(chosen))))
    return [record for record in records if isinstance(record, Example)]
