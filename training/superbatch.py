"""Super-batches: B examples drawn uniformly, decoded, joined with their reference losses; resumable to the example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from typing import Any

import torch

from ..datasets.batches import Prefetched, decode_all, decode_threads, map_in_threads, prefetch
from ..datasets.decoding import Geometry, View
from ..datasets.order import lane_count, order_digest, quotas
from ..datasets.readers import Failure
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset, load_config
from ..errors import RunError, SpecError
from ..scoring.settings import OnMissing
from ..scoring.tables.check import check_table
from ..scoring.tables.counts import all_counts
from ..scoring.tables.keep import Kept
from ..scoring.tables.lookup import ScoreTable, open_scores
from .batch import SuperBatch, Tokenizer, stacked, stored_embeddings, stored_vectors, token_rows
from .division import Division
from .group import Group
from .lanes import Lane, LanePosition, Row, ShardLoader, UnreadableError, refuse_too_many

# As a data set opens its lanes, so many of them read at a time.
READERS = 8
# A lane that had to skip shards may find nothing in an epoch; after so many of them it never will.
EMPTY_EPOCHS = 64
# Of a hundred shards one may be unreadable without ending the run. Of fewer, each is a large part of the data.
SHARDS_PER_BAD_ONE = 100


class SuperBatches:
    """An endless, seeded stream of super-batches of `size` examples. Iterable, closable, resumable to the example.

    `data` is a name of curate.toml, a path or URL pattern, or a DatasetSpec. `views` says how images are seen, by name: a
    Geometry, or a function from an image's bytes to a tensor; torchvision's transforms, and so timm's and open_clip's,
    are given the decoded image instead. Views that are equal are made once. `tokenize` makes tokens of captions, by name.
    `scores` is a score table (or its folder): its losses are joined, with `embeddings` and `logits` those too. A table is
    checked as a whole when the stream is made, unless `verify` is off. With `kept`, made by `keep_best` of the same
    table, the data set is filtered: the rest of it is never drawn.

    Every super-batch draws `size / V` examples from each of V lanes (at most `lanes`, never more than there are shards),
    so that it mixes V shards. Each usable example is given once an epoch. Where the lanes' lengths are known (from a
    table's counts, a Parquet footer, or a data set that fits into `host_bytes`), less than `size` examples an epoch are
    left over, and counted as `dropped`; elsewhere lanes may differ by a shard. `host_bytes` bounds the shards in memory;
    a data set whose decoded images fit into `cache_bytes` is read and decoded once.

    `on_missing` says what becomes of an example without a score: "error", "score" (its loss is NaN, for you to make) or
    "skip". A random transform is not repeated by a resume; all else is. Raises CurateError for whatever is wrong with the
    data, the table or the settings; more than `max_failures` bad examples end the stream. A shard that cannot be read is
    skipped for good and listed in `skipped_shards`; more than `max_bad_shards` (1 % of the shards by default, so none of
    fewer than 100) end the stream.

    In a `group` of W processes rank r reads the lanes r, r + W, ... and is given their rows. The super-batches are the same
    for any W. All ranks must iterate alike; what goes wrong on one of them is raised on all. `waiting()` is entered while
    the stream waits for a super-batch.
    """

    def __init__(
        self,
        data: str | DatasetSpec,
        size: int,
        *,
        views: Mapping[str, View],
        tokenize: Mapping[str, Tokenizer] | None = None,
        scores: str | ScoreTable | None = None,
        kept: Kept | None = None,
        embeddings: bool = False,
        logits: bool = False,
        on_missing: OnMissing = "error",
        seed: int = 0,
        lanes: int | None = None,
        max_failures: float = 0.01,
        max_bad_shards: int | None = None,
        host_bytes: int = 1 << 30,
        cache_bytes: int = 2 << 30,
        config: Config | None = None,
        shards: Sequence[Shard] | None = None,
        verify: bool = True,
        group: Group | None = None,
        waiting: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if size < 1:
            raise SpecError(f"size is {size}, expected at least 1 example in a super-batch")
        if not views:
            raise SpecError("views is empty; name at least one, such as {'learner': curate.Geometry(size=224)}")
        if on_missing not in ("error", "score", "skip"):
            raise SpecError(f"on_missing is '{on_missing}', expected error, score or skip")
        self.dataset = data if isinstance(data, DatasetSpec) else find_dataset(data, config or load_config())
        self.shards = list(shards) if shards is not None else list_shards(self.dataset)
        self.group, self._waiting = group or Group(), waiting
        self.size, self.views, self.tokenize = size, dict(views), dict(tokenize or {})
        self.table = open_scores(scores) if isinstance(scores, str) else scores
        if kept is not None and (self.table is None or on_missing == "score"):
            raise SpecError("kept filters by stored scores; give scores= too, and on_missing 'error' or 'skip'")
        self.kept = kept
        self.max_failures = max_failures
        if self.table is not None and verify:
            check_table(self.table, self.dataset, self.shards, on_missing, size)
        self.embedding_width = self.table.embedding_width if embeddings and self.table is not None else 0
        self.logit_width = self.table.logit_width if logits and self.table is not None else 0
        if logits and (self.table is None or on_missing == "score"):
            raise SpecError("logits are joined from a score table; give scores= too, and on_missing 'error' or 'skip'")
        self.lanes = lane_count(len(self.shards), size, lanes)
        self._views = list(dict.fromkeys(self.views.values()))
        geometries = [view for view in self._views if isinstance(view, Geometry)]
        if self.group.size > self.lanes and len(geometries) < len(self._views):
            raise SpecError(
                f"{self.group.size} ranks share {self.lanes} lanes, so one would read nothing; a view that is a function "
                "cannot say what it makes of nothing: start fewer ranks, or raise lanes"
            )
        loader = ShardLoader(
            self.dataset,
            self.shards,
            self.table,
            embeddings=embeddings,
            logits=logits,
            on_missing=on_missing,
            # What a user's function makes of an image is of unknown size, and may be random: it is never kept.
            cache_bytes=cache_bytes if len(geometries) == len(self._views) else 0,
            image_bytes=sum(3 * g.size * g.size for g in geometries),
            host_bytes=host_bytes,
            max_bad=len(self.shards) // SHARDS_PER_BAD_ONE if max_bad_shards is None else max_bad_shards,
            kept=kept,
        )
        self._loader, self._seed, self._host_bytes = loader, seed, host_bytes
        known = self._known_row_counts()
        # What was read to count is part of the state: a shard may be unreadable now and not at a resume.
        self._rows_read = (
            [self._rows_of(i) for i in range(len(self.shards))] if not known and loader.keeps_all else None
        )
        self._lay_out(known or self._rows_read)
        self._decoders = ThreadPoolExecutor(decode_threads())
        self._drawn = 0
        self._counts: Counter[str] = Counter()
        self._counts_before: dict[str, int] = {}  # those that every rank of a group began with
        self._last_failure: Failure | None = None
        self._state = self._snapshot()
        self._running: Prefetched[tuple[SuperBatch, dict[str, Any]]] | None = None

    def _lay_out(self, rows: list[int] | None) -> None:
        """Divide the data set among the lanes. `rows` of each shard, where they are known."""
        room = self._host_bytes / self.lanes
        self._lanes = [Lane(v, self.lanes, self._loader, rows, self._seed, room) for v in range(self.lanes)]
        shards = [(shard.name, shard.size, shard.bytes) for shard in self.shards]
        filtered = [] if self.kept is None else [self.kept.digest]
        self._digest = order_digest(shards, rows, self.lanes, self.size, self._seed, self._host_bytes, *filtered)

    def __iter__(self) -> Iterator[SuperBatch]:
        """From where the stream stands, for ever."""
        self.group.refuse_differences({"order of examples": self._digest, "super-batches drawn": self._state["drawn"]})
        running = self._running
        self.close()
        if running is not None:
            running.wait()  # it moves the lanes that are about to be rewound
        self._rewind(self._state)
        self._running = running = prefetch(self._stream())
        while True:
            with self.group.together(), self._waiting():
                item = next(running, None)
            if item is None:  # closed
                return
            batch, self._state = item
            yield batch

    def close(self) -> None:
        """Stop reading ahead. The stream can be iterated again, from where it stands."""
        if self._running is not None:
            self._running.close()

    @property
    def drawn(self) -> int:
        """How many super-batches were given."""
        return int(self._state["drawn"])

    @property
    def counts(self) -> dict[str, int]:
        """So far: `examples` that can be used, `failures`, what the join left out and why, `dropped` ends of epochs."""
        return dict(self._state["counts"])

    @property
    def skipped_shards(self) -> dict[str, str]:
        """The shards that could not be read and are left out, by name, with the reason."""
        return dict(self._state["skipped"])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the super-batch given last. JSON-able.

        In a group all ranks call it, and each is given the whole state, which continues in a group of any size.
        """
        return self.whole_state(self.own_state())

    def own_state(self) -> dict[str, Any]:
        """This rank's part of `state_dict`: no collective."""
        return self._state

    def whole_state(self, own: dict[str, Any]) -> dict[str, Any]:
        """`state_dict` of the time when each rank's part was `own`. A collective."""
        return own if self.group.size == 1 else self._merged(self.group.share(own))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind that super-batch. Raises RunError where the stream's order is another one now."""
        then, now = state.get("rows"), self._rows_read
        # A shard of no rows was unreadable then, or is now.
        if (
            then
            and now
            and len(then) == len(now)
            and all(a == b or not a or not b for a, b in zip(then, now, strict=True))
        ):
            self._rows_read = list(then)
            self._lay_out(self._rows_read)
        if state["order"] != self._digest:
            raise RunError(
                f"data set '{self.dataset.name}': the order of examples follows from its shards, their rows, the size, the "
                f"seed, the lanes and host_bytes, and one of them changed ({state['order']} then, {self._digest} now); "
                "resume with what the run began with"
            )
        self.close()
        self._state = {**self._state, "skipped": {}, "lane_skips": [[]] * self.lanes, **state}
        self._counts_before = dict(self._state["counts"])

    def _stream(self) -> Iterator[tuple[SuperBatch, dict[str, Any]]]:
        while True:
            wanted = quotas(self._drawn, self.size, self.lanes)
            own = [count if self._owner(lane) == self.group.rank else 0 for lane, count in enumerate(wanted)]
            rows = self._fill(own)
            divided = Division.of_step(self.group, self._drawn, self.size, self.lanes) if self.group.size > 1 else None
            self._drawn += 1
            yield self._super_batch(rows, divided), self._snapshot()

    def _owner(self, lane: int) -> int:
        """The rank that reads a lane."""
        return lane % self.group.size

    def _fill(self, wanted: Sequence[int]) -> list[Row]:
        """So many examples of each lane that all views can see, in lane order. Bad ones are replaced within their lane."""
        have: list[list[Row]] = [[] for _ in self._lanes]
        began_epochs = [0] * len(have)
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
                    if began_epochs[v] >= (EMPTY_EPOCHS if lane.skipped else 1):
                        raise self._too_small(lane, len(have[v]), wanted[v])
                    self._counts["dropped"] += len(have[v])
                    have[v] = []
                    began_epochs[v] += 1
                    lane.next_epoch()

    def _take(self, counts: Sequence[int]) -> list[list[Row]]:
        """The next candidates of each lane; several lanes read at a time where some have to read."""
        if all(lane.holds(count) for lane, count in zip(self._lanes, counts, strict=True)):
            return [lane.take(count) for lane, count in zip(self._lanes, counts, strict=True)]
        pairs = list(zip(self._lanes, counts, strict=True))
        return map_in_threads(lambda pair: pair[0].take(pair[1]), pairs, READERS)

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

    def _super_batch(self, rows: list[Row], division: Division | None) -> SuperBatch:
        made = {view: stacked([row.seen[view] for row in rows], view) for view in self._views}
        targets = [row.example.target for row in rows]
        names: dict[int, torch.Tensor] = {}
        for tokenizer in self.tokenize.values():
            if id(tokenizer) not in names:
                names[id(tokenizer)] = token_rows(rows, tokenizer)
        for row in rows:
            if not self._loader.keeps(row):
                row.seen.clear()
        has_scores, has_classes = self.table is not None, self.dataset.target.has_classes
        return SuperBatch(
            shards=[row.example.shard for row in rows],
            keys=[row.example.key for row in rows],
            views={name: made[view] for name, view in self.views.items()},
            targets=torch.tensor(targets, dtype=torch.int64) if has_classes else [str(target) for target in targets],
            tokens={name: names[id(tokenizer)] for name, tokenizer in self.tokenize.items()},
            reference_loss=torch.tensor([row.reference_loss for row in rows], dtype=torch.float32)
            if has_scores
            else None,
            reference_pairs=stored_embeddings(rows, self.embedding_width) if self.embedding_width else None,
            reference_logits=stored_vectors(rows, ("logits",), self.logit_width)[0] if self.logit_width else None,
            division=division,
        )

    def _known_row_counts(self) -> list[int] | None:
        """How many rows each shard has, bad ones too, or how many are kept of it; None where nobody knows without reading
        the shards."""
        if self.kept is not None:
            return [self.kept.counts.get(shard.name, 0) for shard in self.shards]
        if self.table is not None:
            known = all_counts(self.table.folder)
            if all(shard.name in known for shard in self.shards):
                return [known[shard.name].examples + known[shard.name].failures for shard in self.shards]
        if all(shard.rows is not None for shard in self.shards):
            return [shard.rows or 0 for shard in self.shards]
        return None

    def _rows_of(self, index: int) -> int:
        """Read a shard that stays in memory; 0 where it cannot be read."""
        try:
            return self._loader.load(index).count
        except UnreadableError as e:
            self._loader.skip(index, e)
            return 0

    def _snapshot(self) -> dict[str, Any]:
        return {
            "order": self._digest,
            "drawn": self._drawn,
            "lanes": [list(astuple(lane.position)) for lane in self._lanes],
            "counts": dict(self._counts),
            "rows": self._rows_read,
            "skipped": dict(self._loader.skipped),
            "lane_skips": [sorted(lane.skipped) for lane in self._lanes],
        }

    def _merged(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The state of all lanes, given that of each rank's own."""
        owners = [states[self._owner(lane)] for lane in range(self.lanes)]
        counts = Counter(self._counts_before)
        for state in states:
            counts.update({name: n - self._counts_before.get(name, 0) for name, n in state["counts"].items()})
        return {
            **states[self.group.rank],
            "lanes": [state["lanes"][lane] for lane, state in enumerate(owners)],
            "lane_skips": [state["lane_skips"][lane] for lane, state in enumerate(owners)],
            "counts": dict(counts),
            "skipped": {name: reason for state in states for name, reason in state["skipped"].items()},
        }

    def _rewind(self, state: Mapping[str, Any]) -> None:
        self._drawn, self._counts = state["drawn"], Counter(state["counts"])
        self._loader.skipped = dict(state["skipped"])
        for lane, position, skips in zip(self._lanes, state["lanes"], state["lane_skips"], strict=True):
            lane.position, lane.skipped = LanePosition(*position), set(skips)
            lane.counts.clear()
            lane.unreadable.clear()
