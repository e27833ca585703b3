"""The pool: examples that scorers scored and the learner may draw. It is a prioritized replay and a memory bank in one.

Pure but for the choice, which `draw` is given. It holds numbers and names, never images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLUMNS = {
    "row": np.int64,
    "epoch": np.int64,
    "version": np.int64,
    "online_loss": np.float32,
    "reference_loss": np.float32,
}
EMPTY, FREE, TAKEN = range(3)


@dataclass(frozen=True)
class Entries:
    """n scored examples: `row` is the number of one in the data set, `version` counts the steps that the weights had taken
    which scored it, `epoch` the pass over the data set that it belongs to. All [n]; a loss is NaN where there is none.
    `items` is what the learner needs to read each."""

    row: np.ndarray
    epoch: np.ndarray
    version: np.ndarray
    online_loss: np.ndarray
    reference_loss: np.ndarray
    items: list[Any]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: np.ndarray) -> Entries:
        columns = {name: getattr(self, name)[index] for name in COLUMNS}
        return Entries(**columns, items=[self.items[i] for i in index.tolist()])


class Pool:
    """At most `size` examples, none older than `max_age` steps.

    An example is free until it is drawn, then taken until it is trained on or given back. A row is free once at most: one
    that is scored again, in a later epoch, takes the place of its older self. Where the pool is full, the example that came
    first makes room. `counts` says what became of all that were added.
    """

    def __init__(self, size: int, max_age: int) -> None:
        assert size > 0 and max_age >= 0
        self.size, self.max_age, self.now = size, max_age, 0
        self.counts: Counter[str] = Counter()
        self._columns = {name: np.zeros(size, dtype=kind) for name, kind in COLUMNS.items()}
        self._state = np.zeros(size, dtype=np.int8)
        self._items: list[Any] = [None] * size
        self._empty = list(range(size))[::-1]
        self._free: dict[int, int] = {}  # the place of each free row, in the order in which they came
        self._taken: dict[tuple[int, int], int] = {}  # the place of each taken (row, epoch)

    def __len__(self) -> int:
        """How many can be drawn."""
        return len(self._free)

    @property
    def taken(self) -> int:
        return len(self._taken)

    def advance(self, step: int) -> None:
        """Now `step` steps are done: drop what is too old."""
        self.now = step
        old = (self._state == FREE) & (self._columns["version"] < step - self.max_age)
        for place in np.flatnonzero(old).tolist():
            self._drop(int(self._columns["row"][place]), "dropped_for_age")

    def add(self, found: Entries) -> None:
        """Insert what was scored. Each that cannot stay is counted."""
        for i, (row, epoch, version) in enumerate(
            zip(found.row.tolist(), found.epoch.tolist(), found.version.tolist(), strict=True)
        ):
            self.counts["added"] += 1
            if version < self.now - self.max_age:
                self.counts["dropped_for_age"] += 1
                continue
            if row in self._free:
                if (epoch, version) < self._age_of(self._free[row]):
                    self.counts["replaced"] += 1
                    continue
                self._drop(row, "replaced")
            if not self._empty:
                if not self._free:  # all are being trained on
                    self.counts["evicted"] += 1
                    continue
                self._drop(next(iter(self._free)), "evicted")
            place = self._empty.pop()
            for name, column in self._columns.items():
                column[place] = getattr(found, name)[i]
            self._items[place], self._state[place], self._free[row] = found.items[i], FREE, place

    def free(self) -> Entries:
        """All that can be drawn, in the order in which they came."""
        return self._entries(self._free.values())

    def draw(self, choose: Callable[[Entries], np.ndarray]) -> Entries:
        """Take those of the free entries whose places among them `choose` returns, int64 [b], none twice."""
        free = self.free()
        chosen = free.take(choose(free))
        for row, epoch in zip(chosen.row.tolist(), chosen.epoch.tolist(), strict=True):
            place = self._free.pop(row)
            self._state[place] = TAKEN
            self._taken[row, epoch] = place
        return chosen

    def trained(self, entries: Entries) -> None:
        """The learner trained on what it took: it is gone."""
        for place in self._let_go(entries):
            self._clear(place)
            self.counts["trained"] += 1

    def bad(self, entries: Entries) -> None:
        """What was taken turned out to be bad: it is gone."""
        for place in self._let_go(entries):
            self._clear(place)
            self.counts["bad"] += 1

    def state_dict(self) -> dict[str, Any]:
        """The columns of all entries, and their counts. What is taken is free again in it: nobody has trained on it."""
        entries = self._entries([*self._taken.values(), *self._free.values()])
        columns = {name: getattr(entries, name) for name in COLUMNS}
        return {"columns": columns, "items": entries.items, "counts": dict(self.counts), "now": self.now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of a pool that had the same size."""
        self.now = state["now"]
        self.add(Entries(**state["columns"], items=list(state["items"])))
        lost = {name: n for name, n in self.counts.items() if name != "added"}
        self.counts = Counter(state["counts"])
        self.counts.update(lost)  # a row that was taken and had come again

    def _entries(self, places: Iterable[int]) -> Entries:
        index = np.fromiter(places, dtype=np.int64)
        items = [self._items[place] for place in index.tolist()]
        return Entries(**{name: column[index] for name, column in self._columns.items()}, items=items)

    def _age_of(self, place: int) -> tuple[int, int]:
        return int(self._columns["epoch"][place]), int(self._columns["version"][place])

    def _drop(self, row: int, why: str) -> None:
        self._clear(self._free.pop(row))
        self.counts[why] += 1

    def _clear(self, place: int) -> None:
        self._state[place], self._items[place] = EMPTY, None
        self._empty.append(place)

    def _let_go(self, entries: Entries) -> Sequence[int]:
        return [self._taken.pop(both) for both in zip(entries.row.tolist(), entries.epoch.tolist(), strict=True)]
