"""What views make of the images of a super-batch: of all of them ahead, or late, of those alone that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ..datasets.decoding import Geometry, View
from ..datasets.readers import Failure
from ..datasets.slabs import rows_together
from ..errors import FailuresError, SpecError
from ..threads import cores
from .copies import to_device
from .division import Deal
from .loading import Row

# Threads that copy images of more than so many bytes in all.
COPIERS, FEW_BYTES = 4, 16 << 20
Look = Callable[[Sequence[Row], View], list[Any]]
"""What a view makes of each row, or the Failure."""
Seen = dict[View, dict[int, Any]]
"""What a view made of rows, by their numbers."""


class LateViews(Mapping[str, torch.Tensor]):
    """Views by name, of which those not in `made` are late: they are made of the rows that `take` or `dealt` is asked for.

    Asking for a late view by its name makes it of all rows. Raises FailuresError where one of them cannot be decoded.
    `is_first` says of each row whether it is given for the first time.
    """

    def __init__(
        self,
        views: Mapping[str, View],
        made: Mapping[View, torch.Tensor],
        rows: Sequence[Row],
        look: Look,
        *,
        is_first: Sequence[bool],
        device: torch.device | None = None,
        seen: Seen | None = None,
    ) -> None:
        self._views, self._made, self._seen = dict(views), dict(made), seen or {}
        self._rows, self._look, self._device = rows, look, device
        self.is_first = is_first

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, name: str) -> torch.Tensor:
        view = self._views[name]
        if view not in self._made:
            self._made[view] = self._of(view, range(len(self._rows)))
        return self._made[view]

    @property
    def made(self) -> list[torch.Tensor]:
        """The views of all rows that are there."""
        return list(self._made.values())

    def to(self, device: torch.device, move: Callable[[torch.Tensor], torch.Tensor]) -> LateViews:
        """What is made, moved; what is made later goes there too."""
        moved = {view: move(tensor) for view, tensor in self._made.items()}
        return self._but(moved, device, self._seen)

    def look(self, places: Sequence[int]) -> tuple[LateViews, dict[int, Failure]]:
        """These views with the rows at `places` decoded, and the failures among them by their places."""
        seen: Seen = {view: dict(found) for view, found in self._seen.items()}
        failed: dict[int, Failure] = {}
        for view in dict.fromkeys(self._views.values()):
            if view in self._made:
                continue
            here = [place for place in places if place not in failed]
            for place, found in zip(here, self._look([self._rows[i] for i in here], view), strict=True):
                if isinstance(found, Failure):
                    failed[place] = found
                else:
                    seen.setdefault(view, {})[place] = found
        return self._but(self._made, self._device, seen), failed

    def take(self, places: Sequence[int], pick: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The views of the rows at `places`; `pick` gives those rows of a tensor of all."""
        return self._by_name(lambda view: self._of(view, places), pick)

    def dealt(self, deal: Deal) -> dict[str, tuple[Deal, torch.Tensor]]:
        """By view a tensor of all rows, or where it is late of those alone that this rank keeps or sends, and the deal among
        the rows that the tensor has."""
        places, among_them = deal.of_chosen()
        distinct = dict.fromkeys(self._views.values())
        found = {
            view: (deal, self._made[view]) if view in self._made else (among_them, self._of(view, places))
            for view in distinct
        }
        return {name: found[view] for name, view in self._views.items()}

    def _but(self, made: Mapping[View, torch.Tensor], device: torch.device | None, seen: Seen) -> LateViews:
        return LateViews(self._views, made, self._rows, self._look, is_first=self.is_first, device=device, seen=seen)

    def _by_name(
        self, make: Callable[[View], torch.Tensor], pick: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        distinct = dict.fromkeys(self._views.values())
        found = {view: pick(self._made[view]) if view in self._made else make(view) for view in distinct}
        return {name: found[view] for name, view in self._views.items()}

    def _of(self, view: View, places: Sequence[int]) -> torch.Tensor:
        known = self._seen.get(view, {})
        missing = [place for place in places if place not in known]
        made = dict(zip(missing, self._look([self._rows[i] for i in missing], view), strict=True)) if missing else {}
        for one in made.values():
            if isinstance(one, Failure):
                raise FailuresError(f"shard '{one.shard}', key '{one.key}', {one.stage}: {one.reason}")
        found = stacked([known[place] if place in known else made[place] for place in places], view)
        return found if self._device is None else to_device(found, self._device)


def _copy(seen: Sequence[np.ndarray], slab: np.ndarray) -> None:
    """Into a slab [n, ...]. One thread would take a tenth of a second for a thousand images of 224 pixels a side."""

    def copy(part: slice) -> None:
        np.stack(seen[part], out=slab[part])

    threads = min(COPIERS, cores()) if slab.nbytes > FEW_BYTES else 1
    if threads == 1:
        copy(slice(None))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, (slice(len(seen) * i // threads, len(seen) * (i + 1) // threads) for i in range(threads))))


def stacked(seen: Sequence[Any], view: View, *, move: bool = False) -> torch.Tensor:
    """One tensor of what a view made of each image. Pixels lie in pinned memory where there is a GPU to copy them to. Those
    that decode processes made stay where they are, if they are in order; with `move` they may be put in order there.

    Raises SpecError where a user's view gives no tensor, or not of one shape.
    """
    if not seen:  # a rank that reads no lane
        assert isinstance(view, Geometry)
        return torch.empty(0, view.size, view.size, 3, dtype=torch.uint8)
    if isinstance(view, Geometry):
        together = rows_together(seen, move=move)
        if together is not None:
            return torch.from_numpy(together)
        slab = torch.empty(len(seen), *seen[0].shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        _copy(seen, slab.numpy())
        return slab
    for one in seen:
        if not isinstance(one, torch.Tensor):
            raise SpecError(f"a view's function returned {type(one).__name__}, expected a tensor")
    kinds = sorted({f"{tuple(one.shape)} {one.dtype}".replace("torch.", "") for one in seen})
    if len(kinds) > 1:
        raise SpecError(f"a view's function returned tensors of different shapes or types: {' and '.join(kinds[:2])}")
    return torch.stack(list(seen))
