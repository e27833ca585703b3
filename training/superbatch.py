"""Super-batches: B examples drawn uniformly, decoded, joined with their reference losses; resumable to the example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..datasets.batches import Prefetched, prefetch
from ..datasets.decoding import Geometry, View
from ..datasets.order import lane_count
from ..datasets.readers import Failure
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset, load_config
from ..errors import RunError, SpecError, parts_of
from ..scoring.settings import OnMissing
from ..scoring.tables.check import check_table
from ..scoring.tables.keep import Kept
from ..scoring.tables.lookup import ScoreTable, open_scores
from .batch import NO_WIDTHS, SuperBatch, Tokenizer, batch_of
from .division import Division
from .drawing import Drawing, Layout, LookAt, refuse_too_many
from .epochs import GrowingEpochs, known_rows
from .group import Group, attempt
from .loading import Row, ShardLoader, SkippedShards, read_to_count
from .looking import Looker
from .mixture import Mix, MixedDrawing, division_of, prefix_of, refuse_unlike
from .positions import MIX, PREFIX, counts_of, merged, skipped_of
from .views import LateViews

T = TypeVar("T")
# Beside the super-batches that wait, one is in the making and one in use.
IN_HANDS = 2
# Of a hundred shards one may be unreadable without ending the run. Of fewer, each is a large part of the data.
SHARDS_PER_BAD_ONE = 100


class SuperBatches:
    """An endless, seeded stream of super-batches of `size` examples. Iterable, closable, resumable to the example.

    `data` is a name of curate.toml, a path or URL pattern, or a DatasetSpec. `views` says how images are seen, by name: a
    Geometry, or a function from an image's bytes to a tensor; torchvision's transforms, and so timm's and open_clip's,
    are given the decoded image instead. Views that are equal are made once. `tokenize` makes tokens of captions, by name.
    `scores` is a score table (or its folder): its losses are joined, with `embeddings` and `logits` those too. A table is
    checked as a whole when the stream is made, unless `verify` is off. With `kept`, made by `keep_best` from the same
    table, the data set is filtered: the rest of it is never drawn. With `mix` a share of every super-batch is drawn from
    another data set, whose shards then have its name before theirs, as a `prefix`; each has half of the two limits of bytes.

    Every super-batch draws `size / V` examples from each of V lanes (at most `lanes`, never more than there are shards),
    so that it mixes V shards. Each usable example is given once an epoch. Where the lanes' lengths are known (from a
    table's counts, a Parquet footer, or a data set that fits into `host_bytes`), less than `size` examples an epoch are
    left over, and counted as `dropped`; elsewhere lanes may differ by a shard. `host_bytes` bounds what is in memory: each
    lane's shards, its next ones, which are read ahead as far as there is room, and the super-batches that are made ahead.
    (One shard a lane and three super-batches are held even if they are larger.) A data set whose decoded images fit into
    `cache_bytes` is read and decoded once. Images are decoded in `decode_processes` processes, in threads where it is 0.

    `on_missing` says what happens to an example without a score: "error", "score" (its loss is NaN, for you to compute) or
    "skip". A resume repeats everything but random transforms. Raises CurateError for whatever is wrong with the
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
        mix: Mix | None = None,
        embeddings: bool = False,
        logits: bool = False,
        on_missing: OnMissing = "error",
        seed: int = 0,
        lanes: int | None = None,
        max_failures: float = 0.01,
        max_bad_shards: int | None = None,
        host_bytes: int = 1 << 30,
        cache_bytes: int = 2 << 30,
        decode_processes: int = 0,
        config: Config | None = None,
        shards: Sequence[Shard] | GrowingEpochs | None = None,
        verify: bool = True,
        group: Group | None = None,
        waiting: Callable[[], AbstractContextManager[Any]] = nullcontext,
        prefix: str = "",
    ) -> None:
        if size < 1:
            raise SpecError(f"size is {size}, expected at least 1 example in a super-batch")
        if not views:
            raise SpecError("views is empty; name at least one, such as {'learner': curate.Geometry(size=224)}")
        if on_missing not in ("error", "score", "skip"):
            raise SpecError(f"on_missing is '{on_missing}', expected error, score or skip")
        self.dataset = data if isinstance(data, DatasetSpec) else find_dataset(data, config or load_config())
        growing, listed = (shards, shards.began) if isinstance(shards, GrowingEpochs) else (None, shards)
        self.shards = list(listed) if listed is not None else list_shards(self.dataset)
        self.group, self._waiting = group or Group(), waiting
        self.size, self.views, self.tokenize = size, dict(views), dict(tokenize or {})
        self.table = open_scores(scores) if isinstance(scores, str) else scores
        if kept is not None and (self.table is None or on_missing == "score"):
            raise SpecError("kept filters by stored scores; give scores= too, and on_missing 'error' or 'skip'")
        self.kept, self.mix = kept, mix
        self.max_failures = max_failures
        self.last_failure: Failure | None = None
        if mix is not None:
            host_bytes, cache_bytes = max(1, host_bytes // 2), cache_bytes // 2
        if self.table is not None and verify:
            check_table(self.table, self.dataset, self.shards, on_missing, size)
        self.embedding_width = self.table.embedding_width if embeddings and self.table is not None else 0
        self.logit_width = self.table.logit_width if logits and self.table is not None else 0
        if embeddings and self.table is None:
            raise SpecError("embeddings are joined from a score table; give scores= too")
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
        self.loader = ShardLoader(
            self.dataset,
            growing.shards if growing else self.shards,
            self.table,
            embeddings=embeddings,
            logits=logits,
            on_missing=on_missing,
            # What a user's function makes of an image is of unknown size, and may be random: it is never kept.
            cache_bytes=cache_bytes if len(geometries) == len(self._views) else 0,
            image_bytes=sum(3 * g.size * g.size for g in geometries),
            host_bytes=host_bytes,
            kept=kept,
            prefix=prefix,
            grows=growing is not None,
        )
        self.max_bad_shards = len(self.shards) // SHARDS_PER_BAD_ONE if max_bad_shards is None else max_bad_shards
        known = growing.rows_at_start if growing else known_rows(self.shards, self.table, kept)
        skipped = SkippedShards(self.shards, self.max_bad_shards)
        # What was read to count is part of the state: a shard may be unreadable now and not at a resume.
        read = read_to_count(self.loader, skipped) if known is None and self.loader.keeps_all else None
        self._layout = Layout(
            shards=self.shards,
            rows=known or read,
            rows_were_read=read is not None,
            lanes=self.lanes,
            size=size,
            seed=seed,
            host_bytes=host_bytes,
            filtered=(*((kept.digest,) if kept else ()), *(((mix.share, mix.first),) if mix else ())),
            growing=growing,
        )
        self._state: dict[str, Any] = {**self._layout.start(), "skipped": skipped.reasons}
        self._mixed: SuperBatches | None = None
        if mix is not None:
            other = mix.data if isinstance(mix.data, DatasetSpec) else find_dataset(mix.data, config or load_config())
            refuse_unlike(self.dataset, other)
            joined = {"scores": mix.scores, "embeddings": embeddings, "logits": logits, "on_missing": on_missing}
            # It decodes nothing itself.
            held = {"host_bytes": host_bytes, "cache_bytes": cache_bytes, "decode_processes": 0}
            bad = {"max_failures": max_failures, "max_bad_shards": max_bad_shards}
            given: dict[str, Any] = {**joined, **held, **bad, "seed": seed, "lanes": lanes, "shards": mix.shards}
            self._mixed = SuperBatches(
                other,
                mix.rows(size),
                views=self.views,
                tokenize=self.tokenize,
                verify=verify or self.group.is_first,
                group=self.group,
                prefix=prefix_of(other),
                **given,
            )
            self._state[MIX] = {**self._mixed._state, PREFIX: self._mixed.loader.prefix}
        self._before: Mapping[str, Any] = {}  # the state that every rank of a group began with
        self._bad_chosen = 0
        self._looker = Looker(self.views, self.tokenize.values(), decode_processes, self._keeps)
        self._running: Prefetched[Any] | None = None

    def __iter__(self) -> Iterator[SuperBatch]:
        """From where the stream stands, until it is closed."""
        return self.stream(lambda batch: batch)

    def stream(
        self, then: Callable[[SuperBatch], T], ahead: Collection[str] | None = None, waiting: int = 0
    ) -> Iterator[T]:
        """What `then`, called in the thread that reads ahead, makes of each super-batch from where the stream stands.

        Of the views only those named `ahead` are made there, all if it is None. Others are made when they are asked for.
        The consumer holds `waiting` of them beside the one in use.
        """
        if torch.utils.data.get_worker_info() is not None:
            raise SpecError(
                "a worker of a DataLoader would draw the same super-batches as every other, and the state would stay there; give "
                "the DataLoader num_workers=0: this stream reads ahead by itself"
            )
        looker = self._looker
        looker.pin()
        late = looker.late(ahead, self.group.size)
        now = looker.ahead_of(late)
        self.group.refuse_differences(
            {
                "order of examples": self._layout.digest,
                "super-batches drawn": self._state["drawn"],
                "views made late": late,
                "views": [*self.views],
                "tokenizers": [*self.tokenize],
                "scores": self.table.reference_fingerprint if self.table else None,
                "stored vectors": (self.embedding_width, self.logit_width),
            }
        )
        self.close()
        drawing = self._drawing(self._state, lambda rows: looker.look_ahead(rows, now))
        images = sum(3 * g.size * g.size for g in now if isinstance(g, Geometry))
        in_hands = IN_HANDS + waiting
        depth = 2 if (2 + in_hands) * self.size * images <= self._layout.host_bytes else 1

        def draw() -> Iterator[tuple[T, dict[str, Any], tuple[int, int, int]]]:
            held: list[int] = []
            shared = 0
            try:
                while True:
                    batch, size = self._super_batch(drawing, late)
                    held.append(size)
                    drawing.room.add(size - (held.pop(0) if len(held) > depth + in_hands else 0))
                    before, shared = shared, looker.shared
                    drawing.room.add(shared - before)
                    yield then(batch), drawing.state(), batch.widths()
            finally:
                drawing.close()

        def waited() -> tuple[Any, dict[str, Any], tuple[int, int, int]] | None:
            with self._waiting():
                return next(running, None)

        self._running = running = prefetch(draw(), depth)
        try:
            while True:
                item, error = attempt(waited)
                widths = self.group.agree(error, *(item[2] if item else NO_WIDTHS))
                if item is None:  # closed
                    return
                made, self._state, _ = item
                if self.group.size > 1:
                    made.agree(widths)
                yield made
        finally:  # also where the consumer lets go of it
            running.close()

    def next_if_made(self) -> Any:
        """What `stream` will give next, if it is made already; None else. Nothing changes by asking."""
        item = self._running.next_if_made() if self._running is not None else None
        return None if item is None else item[0]

    def close(self) -> None:
        """Stop reading ahead. The stream can be iterated again, from where it stands."""
        if self._running is not None:
            self._running.close()

    @property
    def counts(self) -> dict[str, int]:
        """So far: `examples` that can be used, `failures`, what the join left out and why, `dropped` ends of epochs."""
        return counts_of(self.own_state())

    @property
    def skipped_shards(self) -> dict[str, str]:
        """The shards that could not be read and are left out, by name, with the reason."""
        return skipped_of(self._state)

    def count_chosen(self, failures: Sequence[Failure]) -> None:
        """Count examples that turned out to be bad after they were chosen, each once. Raises FailuresError where too many
        examples are bad."""
        self._bad_chosen += len(failures)
        if failures:
            self.last_failure = failures[-1]
            refuse_too_many(self.counts, self.max_failures, failures[-1])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the super-batch given last. JSON-able.

        In a group all ranks call it, and each is given the whole state, which continues in a group of any size.
        """
        return self.whole_state(self.own_state())

    def own_state(self) -> dict[str, Any]:
        """This rank's part of `state_dict`: no collective."""
        return {**self._state, "bad_chosen": self._bad_chosen}

    def whole_state(self, own: dict[str, Any]) -> dict[str, Any]:
        """`state_dict` of the time when each rank's part was `own`. A collective."""
        return own if self.group.size == 1 else merged(self.group.share(own), self.group.rank, self._before)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind that super-batch. Raises RunError where the stream's order is another one now."""
        (order,) = parts_of(state, "SuperBatches", "order")
        then, now = state.get("rows"), self._layout.rows if self._layout.rows_were_read else None
        # A shard of no rows was unreadable then, or is now.
        alike = [a == b or not a or not b for a, b in zip(then or [], now or [], strict=False)]
        if then and now and len(then) == len(now) and all(alike):
            self._layout = replace(self._layout, rows=list(then))
        if order != self._layout.digest:
            raise RunError(
                f"data set '{self.dataset.name}': the order of examples follows from its shards, their rows, the size, the "
                f"seed, the lanes and host_bytes, and one of them changed ({order} then, {self._layout.digest} "
                "now); resume with what the run began with"
            )
        if self._layout.growing is not None:
            self._layout.growing.refuse_others(state["epochs"])
        self.close()
        self._state = {**self._layout.start(), **state}
        if self._mixed is not None:
            self._mixed.load_state_dict(state.get(MIX, {"order": "no mixture"}))
            self._state[MIX] = self._mixed._state
        self._bad_chosen = self._state.pop("bad_chosen", 0)
        self._before = dict(self._state)

    def _drawing(self, state: Mapping[str, Any], look_at: LookAt) -> Drawing | MixedDrawing:
        """From where `state` stands."""
        own = Drawing(
            self.dataset.name,
            self._layout,
            self.loader,
            self.group,
            state,
            look_at,
            max_failures=self.max_failures,
            max_bad_shards=self.max_bad_shards,
        )
        if self.mix is None or self._mixed is None:
            return own
        other = self._mixed._drawing(state[MIX], look_at)
        assert isinstance(other, Drawing)
        return MixedDrawing(own, other, self.mix, self.size, self._mixed.loader.prefix)

    def _keeps(self, row: Row) -> bool:
        """Whether what was decoded of a row may stay in memory."""
        return self.loader.keeps(row) or (self._mixed is not None and self._mixed._keeps(row))

    def _super_batch(self, drawing: Drawing | MixedDrawing, late: Collection[str]) -> tuple[SuperBatch, int]:
        """The next super-batch, and the bytes of memory that it holds, but for what is shared with decode processes."""
        step = drawing.drawn
        rows, is_first = drawing.next()
        self.last_failure = drawing.last_failure or self.last_failure
        mixed_lanes = self._mixed.lanes if self._mixed else 0
        division = division_of(self.group, step, self.size, self.lanes, self.mix, mixed_lanes)
        made = self._looker.made(rows, self._looker.ahead_of(late), move=True)
        held = self._looker.own_bytes(made.values())
        if late and not self.loader.keeps_all:
            held += sum(len(row.example.image) for row in rows)
        views: Mapping[str, torch.Tensor] = {}
        if late:
            views = LateViews(self.views, made, rows, self._looker.look_late, is_first=is_first)
        else:
            views = {name: made[view] for name, view in self.views.items()}
        return self._batch_of(rows, views, step + 1, division), held

    def of_rows(self, rows: Sequence[Row], number: int) -> SuperBatch | dict[int, Failure]:
        """The super-batch of these rows, whatever the stream gives, in all views; the failures by their places, if any."""
        failed = self._looker.look_ahead(rows, self._views)
        if failed:
            return {i: failed[id(row)] for i, row in enumerate(rows) if id(row) in failed}
        made = self._looker.made(rows, self._views)
        return self._batch_of(rows, {name: made[view] for name, view in self.views.items()}, number)

    @property
    def row_counts(self) -> list[int] | None:
        """How many rows each shard has; None where only reading would tell."""
        return self._layout.rows

    def _batch_of(
        self, rows: Sequence[Row], views: Mapping[str, torch.Tensor], number: int, division: Division | None = None
    ) -> SuperBatch:
        kinds = self.dataset.target.has_classes, self.table is not None, self.embedding_width, self.logit_width
        return batch_of(rows, views, self.tokenize, self._looker.tokens, *kinds, division, number)
