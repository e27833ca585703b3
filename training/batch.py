"""A super-batch: B examples as tensors, and how rows become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from ..datasets.targets import hash_target
from ..errors import SpecError
from .copies import to_device
from .division import Deal, Division, dealt_rows
from .loading import Row
from .packing import width_of
from .views import LateViews

Tokenizer = Callable[[list[str]], torch.Tensor]
MakeTokens = Callable[[list[str], Tokenizer], np.ndarray]
"""int32 [n, L] of n captions by a tokenizer."""
NO_WIDTHS = (0, 0, 0)


@dataclass(frozen=True)
class SuperBatch:
    """B examples. Their identity is (`shards`, `keys`).

    `views` holds what each view made of the images, a tensor with B rows (uint8 [B, H, W, 3] for a geometry); a view that
    `SubBatches` makes late, of the chosen examples alone, is made of all B when it is asked for here. `targets` are labels
    int64 [B], or captions; `labels` and `captions` are the same, each of one type. `tokens` are captions by tokenizer's name,
    int64 [B, L]. `reference_loss` is float32 [B], NaN where the table has none and `on_missing` is "score"; None without a
    table. `reference_pairs` are the
    stored image and text embeddings, float16 [B, D], `reference_logits` the stored logits, float16 [B, C]; None where they
    were not asked for.

    Where a group of processes divides the super-batch, `division` says how; all else then holds this rank's rows only.
    `number` counts the super-batches of a stream from 1.
    """

    shards: list[str]
    keys: list[str]
    views: Mapping[str, torch.Tensor]
    targets: torch.Tensor | list[str]
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    reference_loss: torch.Tensor | None = None
    reference_pairs: tuple[torch.Tensor, torch.Tensor] | None = None
    reference_logits: torch.Tensor | None = None
    division: Division | None = None
    number: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def labels(self) -> torch.Tensor:
        """`targets` of a data set of classes, int64 [B]. Raises SpecError for captions."""
        if isinstance(self.targets, list):
            raise SpecError("labels are those of classes, and these examples have captions: take batch.captions")
        return self.targets

    @property
    def captions(self) -> list[str]:
        """`targets` of a data set of image-text pairs, B texts. Raises SpecError for labels."""
        if not isinstance(self.targets, list):
            raise SpecError("captions are those of image-text pairs, and these examples have labels: take batch.labels")
        return self.targets

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

        return self._with(move, self.views.to(where, move) if isinstance(self.views, LateViews) else None)

    def tensors(self) -> list[torch.Tensor]:
        """All that are there, each once."""
        views = self.views.made if isinstance(self.views, LateViews) else self.views.values()
        stored = self.targets, self.reference_loss, self.reference_logits, *(self.reference_pairs or ())
        found = {id(one): one for one in (*views, *self.tokens.values(), *stored) if isinstance(one, torch.Tensor)}
        return list(found.values())

    def take(self, index: torch.Tensor) -> SuperBatch:
        """The examples at `index`, int64 [b], in its order.

        Where a group divides the super-batch, `index` counts its rows over all ranks, in ascending order, and is the same
        on each. This rank is given its share of the b examples: its own first, then the surplus of other ranks. All
        ranks must call it.
        """
        places = self._places(index)
        if self.division is not None:
            return self.dealt(self.division.deal(index))
        taken: dict[int, torch.Tensor] = {}

        def pick(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in taken:
                taken[id(tensor)] = tensor[index.to(tensor.device)]
            return taken[id(tensor)]

        views = self.views.take(places, pick) if isinstance(self.views, LateViews) else None
        found = self._with(pick, views)
        targets = found.targets if not isinstance(self.targets, list) else [self.targets[i] for i in places]
        return replace(
            found, shards=[self.shards[i] for i in places], keys=[self.keys[i] for i in places], targets=targets
        )

    def _places(self, index: torch.Tensor) -> list[int]:
        """Raises SpecError where an index is none: a mask of bools would be taken for the numbers 0 and 1."""
        B = len(self.division or self)
        is_index = isinstance(index, torch.Tensor) and index.dim() == 1 and index.dtype in (torch.int64, torch.int32)
        places: list[int] = index.tolist() if is_index else []
        ascending = self.division is None or all(a < b for a, b in pairwise(places))
        if not is_index or not all(0 <= place < B for place in places) or not ascending:
            raise SpecError(
                f"the index of examples to take is {index!r}, expected numbers from 0 to {B - 1}, int64 [b]"
                + (", ascending" if self.division is not None else "")
                + "; of a mask take mask.nonzero().squeeze(1)"
            )
        return places

    def dealt(self, deal: Deal) -> SuperBatch:
        """The examples that this rank trains on. A collective."""
        late = self.views.dealt(deal) if isinstance(self.views, LateViews) else None
        views = {name: rows for name, (_, rows) in late.items()} if late else None
        among = {id(rows): (of, rows) for of, rows in late.values()} if late else {}

        def ask(tensor: torch.Tensor) -> torch.Tensor:
            among.setdefault(id(tensor), (deal, tensor))
            return tensor

        self._with(ask, views)
        rows, (shards, keys, *captions) = dealt_rows(deal, [*among.values()], self._texts())
        taken = dict(zip(among, rows, strict=True))
        found = self._with(lambda tensor: taken[id(tensor)], views and {n: taken[id(v)] for n, v in views.items()})
        return replace(
            found,
            shards=shards,
            keys=keys,
            targets=captions[0] if captions else found.targets,
            division=None,
        )

    def whole_names(self) -> tuple[list[str], list[str]]:
        """Shards and keys of the whole super-batch. A collective where a group divides it."""
        if self.division is None:
            return self.shards, self.keys
        shards, keys = self.division.whole_texts([self.shards, self.keys])
        return shards, keys

    def widths(self) -> tuple[int, int, int]:
        """The width of its shards, keys and captions in a message, where a group divides it."""
        if self.division is None:
            return NO_WIDTHS
        shard, key, caption, *_ = *map(width_of, self._texts()), 0
        return shard, key, caption

    def agree(self, widths: Iterable[int]) -> None:
        """Note the greatest of all ranks' `widths`, here and in copies of this super-batch."""
        if self.division is not None:
            self.division.widths[:] = widths

    def _texts(self) -> list[list[str]]:
        return [self.shards, self.keys, *([self.targets] if isinstance(self.targets, list) else [])]

    def _with(
        self, change: Callable[[torch.Tensor], torch.Tensor], views: Mapping[str, torch.Tensor] | None
    ) -> SuperBatch:
        return replace(
            self,
            views=views if views is not None else {name: change(view) for name, view in self.views.items()},
            targets=self.targets if isinstance(self.targets, list) else change(self.targets),
            tokens={name: change(tokens) for name, tokens in self.tokens.items()},
            reference_loss=None if self.reference_loss is None else change(self.reference_loss),
            reference_pairs=None
            if self.reference_pairs is None
            else (change(self.reference_pairs[0]), change(self.reference_pairs[1])),
            reference_logits=None if self.reference_logits is None else change(self.reference_logits),
        )


def batch_of(
    rows: Sequence[Row],
    views: Mapping[str, torch.Tensor],
    tokenize: Mapping[str, Tokenizer],
    make_tokens: MakeTokens,
    has_classes: bool,
    has_scores: bool,
    embedding_width: int,
    logit_width: int,
    division: Division | None,
    number: int,
) -> SuperBatch:
    """The super-batch of these rows, of which `views` were made."""
    tokens: dict[int, torch.Tensor] = {}
    for tokenizer in tokenize.values():
        if id(tokenizer) not in tokens:
            tokens[id(tokenizer)] = token_rows(rows, tokenizer, make_tokens)
    targets = [row.example.target for row in rows]
    losses = [row.reference_loss for row in rows]
    return SuperBatch(
        shards=[row.shard for row in rows],
        keys=[row.example.key for row in rows],
        views=views,
        targets=torch.tensor(targets, dtype=torch.int64) if has_classes else [str(target) for target in targets],
        tokens={name: tokens[id(tokenizer)] for name, tokenizer in tokenize.items()},
        reference_loss=torch.tensor(losses, dtype=torch.float32) if has_scores else None,
        reference_pairs=stored_embeddings(rows, embedding_width) if embedding_width else None,
        reference_logits=stored_vectors(rows, ("logits",), logit_width)[0] if logit_width else None,
        division=division,
        number=number,
    )


def numbers_of(names: Iterable[bytes]) -> torch.Tensor:
    """int64 [n]: 64 bits of BLAKE2b of each, the same on every rank."""
    return torch.from_numpy(np.array([hash_target(name) for name in names], dtype=np.uint64).view(np.int64))


def token_rows(rows: Sequence[Row], tokenizer: Tokenizer, make_tokens: MakeTokens) -> torch.Tensor:
    """int64 [B, L]. Python tokenizes slower than a small model scores, and epochs come round again: rows keep theirs."""
    if not rows:
        return tokenizer([""])[:0].long()
    kind = id(tokenizer)
    new = [row for row in rows if kind not in row.tokens]
    if new:
        made = make_tokens([str(row.example.target) for row in new], tokenizer)
        for row, tokens_L in zip(new, made, strict=True):
            row.tokens[kind] = tokens_L.copy()
    return torch.from_numpy(np.stack([row.tokens[kind] for row in rows])).long()


def stored_embeddings(rows: Sequence[Row], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored image and text embeddings of B rows, float16 [B, width]; NaN where the table has none."""
    image, text = stored_vectors(rows, ("image_embedding", "text_embedding"), width)
    return image, text


def stored_vectors(rows: Sequence[Row], names: Sequence[str], width: int) -> list[torch.Tensor]:
    """Vectors of B rows from their score files, each float16 [B, width], gathered a shard at a time; NaN where the table
    has none. In pinned memory where there is a GPU to copy them to."""
    tables = list({id(row.scores): row.scores for row in rows if row.score_row >= 0}.values())
    number = {id(table): i for i, table in enumerate(tables)}
    table_B = np.array([number.get(id(row.scores), -1) if row.score_row >= 0 else -1 for row in rows])
    row_B = np.array([row.score_row for row in rows])
    pinned = torch.cuda.is_available()
    found = [torch.full((len(rows), width), torch.nan, dtype=torch.float16, pin_memory=pinned) for _ in names]
    for i, scores in enumerate(tables):
        here = table_B == i
        for name, vectors in zip(names, found, strict=True):
            vectors.numpy()[here] = getattr(scores, name)[row_B[here]]
    return found
