"""Super-batches: B examples drawn uniformly, decoded, joined with their reference losses; resumable to the example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..datasets.batches import decode_all, decode_threads, prefetch
from ..datasets.decoding import Geometry, View
from ..datasets.order import lane_count, order_digest, quotas
from ..datasets.readers import Failure
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset, load_config
from ..errors import RunError, SpecError
from ..scoring.settings import OnMissing
from ..scoring.tables.check import check_table
from ..scoring.tables.counts import all_counts
from ..scoring.tables.lookup import ScoreTable, open_scores
from .lanes import Lane, LanePosition, Row, ShardLoader, refuse_too_many

Tokenizer = Callable[[list[str]], torch.Tensor]
# As a data set opens its lanes, so many of them read at a time.
READERS = 8


@dataclass(frozen=True)
class SuperBatch:
    """B examples. Their identity is (`shards`, `keys`).

    `views` holds what each view made of the images, a tensor with B rows (uint8 [B, H, W, 3] for a geometry). `targets`
    are labels int64 [B], or captions. `tokens` are captions by tokenizer's name, int64 [B, L]. `reference_loss` is
    float32 [B], NaN where the table has none and `on_missing` is "score"; None without a table. `reference_pairs` are the
    stored image and text embeddings, float16 [B, D], None where they were not asked for.
    """

    shards: list[str]
    keys: list[str]
    views: dict[str, torch.Tensor]
    targets: torch.Tensor | list[str]
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    reference_loss: torch.Tensor | None = None
    reference_pairs: tuple[torch.Tensor, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def model_targets(self, name: str) -> torch.Tensor:
        """What the model of this name takes beside its view: its tokens, or the labels."""
        if name in self.tokens:
            return self.tokens[name]
        if isinstance(self.targets, list):
            raise SpecError(f"captions need a tokenizer for '{name}': give tokenize={{'{name}': ...}}")
        return self.targets

    def to(self, device: torch.device | str) -> SuperBatch:
        """The same examples with all tensors on a device, through pinned memory where it is a GPU."""
        moved: dict[int, torch.Tensor] = {}
        where = torch.device(device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in moved:  # views and tokens that are alike share a tensor
                moved[id(tensor)] = to_device(tensor, where)
            return moved[id(tensor)]

        return self._with(move)

    def take(self, index: torch.Tensor) -> SuperBatch:
        """The examples at `index`, int64 [b], in its order."""
        places = index.tolist()
        taken: dict[int, torch.Tensor] = {}

        def pick(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in taken:
                taken[id(tensor)] = tensor[index.to(tensor.device)]
            return taken[id(tensor)]

        found = self._with(pick)
        targets = found.targets if not isinstance(self.targets, list) else [self.targets[i] for i in places]
        return replace(
            found, shards=[self.shards[i] for i in places], keys=[self.keys[i] for i in places], targets=targets
        )

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SuperBatch:
        return replace(
            self,
            views={name: change(view) for name, view in self.views.items()},
            targets=self.targets if isinstance(self.targets, list) else change(self.targets),
            tokens={name: change(tokens) for name, tokens in self.tokens.items()},
            reference_loss=None if self.reference_loss is None else change(self.reference_loss),
            reference_pairs=None
            if self.reference_pairs is None
            else (change(self.reference_pairs[0]), change(self.reference_pairs[1])),
        )


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, through pinned memory where it is a GPU, so that the copy does not wait for the work there."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class SuperBatches:
    """An endless, seeded stream of super-batches of `size` examples. Iterable, closable, resumable to the example.

    `data` is a name of curate.toml, a path or URL pattern, or a DatasetSpec. `views` says how images are seen, by name: a
    Geometry, or a function from an image's bytes to a tensor; torchvision's transforms, and so timm's and open_clip's,
    are given the decoded image instead. Views that are equal are made once. `tokenize` makes tokens of captions, by name.
    `scores` is a score table (or its folder): its losses are joined, with `embeddings` its embeddings too. A table is
    checked as a whole when the stream is made, unless `verify` is off.

    Every super-batch draws `size / V` examples from each of V lanes (at most `lanes`, never more than there are shards),
    so that it mixes V shards. Each usable example is given once an epoch. Where the lanes' lengths are known (from a
    table's counts, a Parquet footer, or a data set that fits into `host_bytes`), less than `size` examples an epoch are
    left over, and counted as `dropped`; elsewhere lanes may differ by a shard. `host_bytes` bounds the shards in memory;
    a data set whose decoded images fit into `cache_bytes` is read and decoded once.

    `on_missing` says what becomes of an example without a score: "error", "score" (its loss is NaN, for you to make) or
    "skip". A random transform is not repeated by a resume; all else is. Raises CurateError for whatever is wrong with the
    data, the table or the settings; more than `max_failures` bad examples end the stream.
    """

    def __init__(
        self,
        data: str | DatasetSpec,
        size: int,
        *,
        views: Mapping[str, View],
        tokenize: Mapping[str, Tokenizer] | None = None,
        scores: str | ScoreTable | None = None,
        embeddings: bool = False,
        on_missing: OnMissing = "error",
        seed: int = 0,
        lanes: int | None = None,
        max_failures: float = 0.01,
        host_bytes: int = 1 << 30,
        cache_bytes: int = 2 << 30,
        config: Config | None = None,
        shards: Sequence[Shard] | None = None,
        verify: bool = True,
    ) -> None:
        if size < 1:
            raise SpecError(f"size is {size}, expected at least 1 example in a super-batch")
        if not views:
            raise SpecError("views is empty; name at least one, such as {'learner': curate.Geometry(size=224)}")
        if on_missing not in ("error", "score", "skip"):
            raise SpecError(f"on_missing is '{on_missing}', expected error, score or skip")
        self.dataset = data if isinstance(data, DatasetSpec) else find_dataset(data, config or load_config())
        self.shards = list(shards) if shards is not None else list_shards(self.dataset)
        self.size, self.views, self.tokenize = size, dict(views), dict(tokenize or {})
        self.table = open_scores(scores) if isinstance(scores, str) else scores
        self.max_failures = max_failures
        if self.table is not None and verify:
            check_table(self.table, self.dataset, self.shards, on_missing, size)
        self.embedding_width = self.table.embedding_width if embeddings and self.table is not None else 0
        self.lanes = lane_count(len(self.shards), size, lanes)
        self._views = list(dict.fromkeys(self.views.values()))
        geometries = [view for view in self._views if isinstance(view, Geometry)]
        loader = ShardLoader(
            self.dataset,
            self.shards,
            self.table,
            embeddings=embeddings,
            on_missing=on_missing,
            # What a user's function makes of an image is of unknown size, and may be random: it is never kept.
            cache_bytes=cache_bytes if len(geometries) == len(self._views) else 0,
            image_bytes=sum(3 * g.size * g.size for g in geometries),
            host_bytes=host_bytes,
        )
        rows = self._row_counts(loader)
        room = host_bytes / self.lanes
        self._lanes = [Lane(v, self.lanes, loader, rows, seed, room) for v in range(self.lanes)]
        self._loader = loader
        self._digest = order_digest(
            [(shard.name, shard.size, shard.bytes) for shard in self.shards], rows, self.lanes, size, seed, host_bytes
        )
        self._decoders = ThreadPoolExecutor(decode_threads())
        self._readers = ThreadPoolExecutor(min(READERS, self.lanes))
        self._drawn = 0
        self._counts: Counter[str] = Counter()
        self._last_failure: Failure | None = None
        self._state = self._snapshot()
        self._running: Any = None

    def __iter__(self) -> Iterator[SuperBatch]:
        """From where the stream stands, for ever."""
        self.close()
        self._rewind(self._state)
        self._running = prefetch(self._stream())
        for batch, state in self._running:
            self._state = state
            yield batch

    def close(self) -> None:
        """Stop reading ahead. The stream can be iterated again, from where it stands."""
        if self._running is not None:
            self._running.close()
            self._running = None

    @property
    def counts(self) -> dict[str, int]:
        """So far: `examples` that can be used, `failures`, what the join left out and why, `dropped` ends of epochs."""
        return dict(self._state["counts"])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the super-batch given last. JSON-able."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind that super-batch. Raises RunError where the stream's order is another one now."""
        if state["order"] != self._digest:
            raise RunError(
                f"data set '{self.dataset.name}': the order of examples follows from its shards, their rows, the size, the "
                f"seed, the lanes and host_bytes, and one of them changed ({state['order']} then, {self._digest} now); "
                "resume with what the run began with"
            )
        self.close()
        self._state = dict(state)

    def _stream(self) -> Iterator[tuple[SuperBatch, dict[str, Any]]]:
        while True:
            rows = self._fill(quotas(self._drawn, self.size, self.lanes))
            self._drawn += 1
            yield self._super_batch(rows), self._snapshot()

    def _fill(self, wanted: Sequence[int]) -> list[Row]:
        """So many examples of each lane that all views can see, in lane order. Bad ones are replaced within their lane."""
        have: list[list[Row]] = [[] for _ in self._lanes]
        began_epoch = [False] * len(have)
        while True:
            missing = [want - len(rows) for want, rows in zip(wanted, have, strict=True)]
            if not any(missing):
                return [row for rows in have for row in rows]
            taken = self._take(missing)
            failed = self._look_at([row for rows in taken for row in rows])
            for v, (lane, rows) in enumerate(zip(self._lanes, taken, strict=True)):
                have[v] += [row for row in rows if id(row) not in failed]
                self._count(lane, [failed[id(row)] for row in rows if id(row) in failed])
                if len(rows) < missing[v]:  # this epoch ends with too few for a super-batch
                    if began_epoch[v]:
                        raise self._too_small(lane, len(have[v]), wanted[v])
                    self._counts["dropped"] += len(have[v])
                    have[v], began_epoch[v] = [], True
                    lane.next_epoch()

    def _take(self, counts: Sequence[int]) -> list[list[Row]]:
        """The next candidates of each lane; several lanes read at a time where some have to read."""
        if all(lane.holds(count) for lane, count in zip(self._lanes, counts, strict=True)):
            return [lane.take(count) for lane, count in zip(self._lanes, counts, strict=True)]
        return list(self._readers.map(Lane.take, self._lanes, counts))

    def _look_at(self, rows: Sequence[Row]) -> dict[int, Failure]:
        """Look at the rows in every view. Returns the failures, by the row's id."""
        failed: dict[int, Failure] = {}
        for view in self._views:
            waiting = [row for row in rows if view not in row.seen and id(row) not in failed]
            made = decode_all([row.example for row in waiting], view, self._decoders) if waiting else []
            for row, result in zip(waiting, made, strict=True):
                if isinstance(result, Failure):
                    failed[id(row)] = result
                else:
                    row.seen[view] = result
        return failed

    def _count(self, lane: Lane, failures: Sequence[Failure]) -> None:
        """Every example is counted once: in the first epoch of its lane."""
        self._counts.update(lane.counts)
        lane.counts.clear()
        found = [*lane.unreadable, *(failures if lane.position.epoch == 0 else ())]
        lane.unreadable.clear()
        self._counts["failures"] += len(found)
        if found or failures:
            self._last_failure = (found or failures)[-1]
        if found:
            refuse_too_many(self._counts, self.max_failures, found[-1])

    def _too_small(self, lane: Lane, found: int, wanted: int) -> SpecError:
        if self.lanes == 1 or lane.rows is not None:
            what = f"has {self._counts['examples']:,} usable examples, a super-batch needs {self.size:,}"
        else:
            what = f"has {found:,} usable examples in one of its {self.lanes} lanes, which needs {wanted:,}"
        why = f"; the last bad one: {self._last_failure.reason}" if self._last_failure else ""
        return SpecError(
            f"data set '{self.dataset.name}' {what}; lower --batch-size, --filter-ratio or --lanes (here: size, lanes){why}"
        )

    def _super_batch(self, rows: list[Row]) -> SuperBatch:
        made = {view: _stacked([row.seen[view] for row in rows]) for view in self._views}
        targets = [row.example.target for row in rows]
        names: dict[int, torch.Tensor] = {}
        for tokenizer in self.tokenize.values():
            if id(tokenizer) not in names:
                names[id(tokenizer)] = _tokens(rows, tokenizer)
        for row in rows:
            if not self._loader.keeps(row):
                row.seen.clear()
        has_scores = self.table is not None
        return SuperBatch(
            shards=[row.example.shard for row in rows],
            keys=[row.example.key for row in rows],
            views={name: made[view] for name, view in self.views.items()},
            targets=torch.tensor(targets) if self.dataset.target.has_classes else [str(target) for target in targets],
            tokens={name: names[id(tokenizer)] for name, tokenizer in self.tokenize.items()},
            reference_loss=torch.tensor([row.reference_loss for row in rows]) if has_scores else None,
            reference_pairs=stored_embeddings(rows, self.embedding_width) if self.embedding_width else None,
        )

    def _row_counts(self, loader: ShardLoader) -> list[int] | None:
        """How many rows each shard has, bad ones too; None where nobody knows without reading all of a large data set."""
        if self.table is not None:
            known = all_counts(self.table.folder)
            if all(shard.name in known for shard in self.shards):
                return [known[shard.name].examples + known[shard.name].failures for shard in self.shards]
        if all(shard.rows is not None for shard in self.shards):
            return [shard.rows or 0 for shard in self.shards]
        if loader.keeps_all:
            return [loader.load(i).count for i in range(len(self.shards))]
        return None

    def _snapshot(self) -> dict[str, Any]:
        return {
            "order": self._digest,
            "drawn": self._drawn,
            "lanes": [list(astuple(lane.position)) for lane in self._lanes],
            "counts": dict(self._counts),
        }

    def _rewind(self, state: Mapping[str, Any]) -> None:
        self._drawn, self._counts = state["drawn"], Counter(state["counts"])
        for lane, position in zip(self._lanes, state["lanes"], strict=True):
            lane.position = LanePosition(*position)
            lane.counts.clear()
            lane.unreadable.clear()


def _stacked(seen: Sequence[Any]) -> torch.Tensor:
    """Raises SpecError where a user's view gives no tensor, or not of one shape."""
    if all(isinstance(one, np.ndarray) for one in seen):
        return torch.from_numpy(np.stack(seen))
    wrong = next((one for one in seen if not isinstance(one, torch.Tensor)), None)
    if wrong is not None:
        raise SpecError(f"a view's function returned {type(wrong).__name__}, expected a tensor")
    shapes = {tuple(one.shape) for one in seen}
    if len(shapes) > 1:
        raise SpecError(f"a view's function returned tensors of shapes {' and '.join(map(str, sorted(shapes)[:2]))}")
    return torch.stack(list(seen))


def _tokens(rows: Sequence[Row], tokenizer: Tokenizer) -> torch.Tensor:
    """int64 [B, L]. Python tokenizes slower than a small model scores, and epochs come round again: rows keep theirs."""
    kind = id(tokenizer)
    new = [row for row in rows if kind not in row.tokens]
    if new:
        made = tokenizer([str(row.example.target) for row in new]).numpy().astype(np.int32)
        for row, tokens_L in zip(new, made, strict=True):
            row.tokens[kind] = tokens_L.copy()
    return torch.from_numpy(np.stack([row.tokens[kind] for row in rows])).long()


def stored_embeddings(rows: Sequence[Row], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored image and text embeddings of B rows, float16 [B, width], gathered a shard at a time; NaN where the table
    has none. In pinned memory where there is a GPU to copy them to."""
    tables = list({id(row.scores): row.scores for row in rows if row.score_row >= 0}.values())
    number = {id(table): i for i, table in enumerate(tables)}
    table_B = np.array([number.get(id(row.scores), -1) if row.score_row >= 0 else -1 for row in rows])
    row_B = np.array([row.score_row for row in rows])
    pinned = torch.cuda.is_available()
    image, text = (torch.full((len(rows), width), torch.nan, dtype=torch.float16, pin_memory=pinned) for _ in range(2))
    for i, scores in enumerate(tables):
        here = table_B == i
        assert scores is not None and scores.image_embedding is not None and scores.text_embedding is not None
        image.numpy()[here] = scores.image_embedding[row_B[here]]
        text.numpy()[here] = scores.text_embedding[row_B[here]]
    return image, text
