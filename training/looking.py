"""What the views of a stream make of its rows: ahead, of all rows, or late, of those alone that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..datasets.decoders import Decoders, Tokenizer
from ..datasets.decoding import Geometry, View
from ..datasets.readers import Failure
from .copies import Pinned
from .loading import Row
from .views import stacked


class Looker:
    """Looks at rows, in processes or threads. A row for which `keeps` holds may keep what was made of it."""

    def __init__(
        self,
        views: Mapping[str, View],
        tokenizers: Iterable[Tokenizer],
        decode_processes: int,
        keeps: Callable[[Row], bool],
    ) -> None:
        self.views, self.keeps = dict(views), keeps
        self.distinct = list(dict.fromkeys(views.values()))
        self._decoders = Decoders(decode_processes, self.distinct, tokenizers)

    @property
    def shared(self) -> int:
        """Bytes of all that decode processes write to, whether or not it is in use."""
        return self._decoders.slabs.held

    def own_bytes(self, tensors: Iterable[torch.Tensor]) -> int:
        """Bytes of the tensors that lie elsewhere."""
        return sum(tensor.nbytes for tensor in tensors if not self._decoders.slabs.has(tensor.data_ptr()))

    def pin(self) -> None:
        """Pin what decode processes write to from now on, where there is a GPU: for that of the calling thread."""
        if self._decoders.processes and torch.cuda.is_available():
            self._decoders.slabs.pinning = Pinned(torch.cuda.current_device())

    def late(self, ahead: Collection[str] | None, ranks: int) -> list[str]:
        """The views that are not made ahead, neither by this name nor by another. A rank may have nothing to make, and a
        function cannot say what it makes of nothing."""
        if ahead is None:
            return []
        now = {view for name, view in self.views.items() if name in ahead}
        if ranks > 1:
            now |= {view for view in self.distinct if not isinstance(view, Geometry)}
        return [name for name, view in self.views.items() if view not in now]

    def ahead_of(self, late: Collection[str]) -> list[View]:
        """The views that are made ahead, where these are late."""
        return list(dict.fromkeys(view for name, view in self.views.items() if name not in late))

    def look_ahead(self, rows: Sequence[Row], views: Iterable[View]) -> dict[int, Failure]:
        """Look at the rows in these views; `made` takes what they make. Returns the failures, by the row's id."""
        failed: dict[int, Failure] = {}
        for view in views:
            waiting = [row for row in rows if view not in row.seen and id(row) not in failed]
            found = self._decoders.look([row.example for row in waiting], view)
            for row, result in zip(waiting, found, strict=True):
                if isinstance(result, Failure):
                    failed[id(row)] = result
                    row.seen.clear()  # of the views before
                else:
                    row.seen[view] = self._to_keep(result) if self.keeps(row) else result
        return failed

    def look_late(self, rows: Sequence[Row], view: View) -> list[Any]:
        """What a view makes of each row, or the Failure; rows of shards that stay in memory keep it."""
        found = [row.seen.get(view) for row in rows]
        waiting = [i for i, seen in enumerate(found) if seen is None]
        made = self._decoders.look([rows[i].example for i in waiting], view, late=True)
        for i, seen in zip(waiting, made, strict=True):
            found[i] = seen
            if self.keeps(rows[i]) and not isinstance(seen, Failure):
                rows[i].seen[view] = self._to_keep(seen)
        return found

    def made(self, rows: Sequence[Row], views: Iterable[View], *, move: bool = False) -> dict[View, torch.Tensor]:
        """What the views made of rows that were looked at, a tensor each; the rows forget it where they do not keep it. With
        `move` no other row knows what was made of it together with these: they may be moved within that memory."""
        found = {view: stacked([row.seen[view] for row in rows], view, move=move) for view in views}
        for row in rows:
            if not self.keeps(row):
                row.seen.clear()
        return found

    def tokens(self, captions: list[str], tokenizer: Tokenizer) -> np.ndarray:
        """int32 [n, L]."""
        return self._decoders.tokens(captions, tokenizer)

    def _to_keep(self, seen: Any) -> Any:
        """Pixels alone, without the memory of all others that were decoded with them."""
        return seen.copy() if self._decoders.processes and isinstance(seen, np.ndarray) else seen
