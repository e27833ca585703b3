"""Sub-batches that are drawn from the pool that actors fill. To the loop they are sub-batches like any others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from ..ledger import Ledger
from ..scoring.losses import Losses
from ..scoring.selection import Selection
from ..scoring.selector import Selector
from ..units import counted, format_flops, percent
from .batch import SuperBatch
from .by_place import PlaceReader
from .drawing import refuse_too_many
from .exchange import Exchange
from .lease_scorer import Item
from .pool import COLUMNS, Entries
from .scorer import BudgetSpentError, RunScorer
from .sub import SubBatches
from .sub_batch import SubBatch, sub_batch
from .superbatch import SuperBatches

# A fresh model's choice is compared on every so many lines of metrics.
OVERLAP_LINES = 10
NONE = Entries(**{name: np.empty(0, dtype=kind) for name, kind in COLUMNS.items()}, items=[])


class Crew(Protocol):
    """Who scores: threads or actors that take leases of an exchange."""

    def start(self, exchange: Exchange) -> None: ...

    def payload(self, weights: Mapping[str, np.ndarray]) -> Any:
        """Weights as leases carry them."""
        ...

    def close(self) -> None: ...


class PooledSubBatches(SubBatches):
    """Draws b of the pool of `exchange` by the policy, and reads their images here. `crew` fills the pool.

    Every `refresh` steps the crew is given `weights()`. The scoring that was done is on the `ledger` line of the online
    model; BudgetSpentError is raised where the budget pays for no more of it. The choice of a fresh model is compared
    every `overlap_every` steps.
    """

    def __init__(
        self,
        batches: SuperBatches,
        selector: Selector,
        *,
        exchange: Exchange,
        crew: Crew,
        weights: Callable[[], Mapping[str, np.ndarray]],
        refresh: int,
        scorer: RunScorer,
        ledger: Ledger,
        steps: int,
        overlap_every: int,
        waiting: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
        timing: Callable[[str], AbstractContextManager[Any]],
        check: Callable[[SuperBatch], None],
    ) -> None:
        super().__init__(batches, selector, scorer=scorer, device=device, timing=timing, check=check)
        self.exchange, self.crew, self.weights, self.refresh = exchange, crew, weights, refresh
        self.ledger, self.steps, self.overlap_every, self._released = ledger, steps, overlap_every, waiting
        self._fresh = scorer
        self._reader = PlaceReader(batches.loader)
        self._step = 0
        self._published = -1
        self._given: Entries | None = None
        self._ages = np.zeros(1)
        self._overlap: float | None = None
        self._since: tuple[float, float] | None = (
            None  # when the first sub-batch was drawn, and how long that had waited
        )

    def __iter__(self) -> Iterator[SubBatch]:
        self.crew.start(self.exchange)
        while True:
            self._confirm()
            if self._published < 0 or self._step - self._published >= self.refresh:
                self.exchange.publish(self._step, self.crew.payload(self.weights()))
                self._published = self._step
            self._overlap = None
            if self.overlap_every and (self._step + 1) % self.overlap_every == 0:
                self._overlap = self._compared()
            with self.timing("data"):
                sub, entries = self._drawn()
            self._since = self._since or (time.perf_counter(), self.exchange.waited["learner"])
            self._step += 1
            if self._step == self.steps:
                self.exchange.close()
            self.ledger.online_score = self.exchange.flops
            self._given = entries
            yield sub

    def _confirm(self) -> None:
        """The learner has trained on what it was given: the loop asks for more, for the state, or ends."""
        if self._given is not None:
            self.exchange.trained(self._given, self._step)
            self._given = None

    def _drawn(self) -> tuple[SubBatch, Entries]:
        """The next b, with bad examples replaced."""
        entries, score = NONE, torch.empty(0)
        while True:
            with self._released():
                found = self._take(self.selector.b - len(entries))
            if found is None:
                lost = self.exchange.counted().get("leases_lost", 0)
                raise BudgetSpentError(
                    f"the budget is smaller than one step and what was scored for it: {self.exchange.leased:,} examples for "
                    f"{format_flops(self.exchange.flops)}, with {lost:,} leases whose answers were lost; raise it"
                )
            entries, score = joined(entries, found[0]), torch.cat([score, found[1]])
            read = self._read(entries)
            if isinstance(read, SuperBatch):
                return self._sub(read, entries, score), entries
            is_bad = np.isin(np.arange(len(entries)), list(read))
            self.exchange.bad(entries.take(np.flatnonzero(is_bad)))
            self.batches.count_chosen([*read.values()])
            entries, score = entries.take(np.flatnonzero(~is_bad)), score[torch.from_numpy(~is_bad)]

    def _take(self, count: int) -> tuple[Entries, torch.Tensor] | None:
        scores: list[torch.Tensor] = []

        def choose(free: Entries) -> np.ndarray:
            selector = self.selector if count == self.selector.b else self.selector.copied(count)
            selection = self._choose(selector, self._losses(free), len(free))
            assert selection.score is not None
            scores.append(selection.score[selection.index])
            index: np.ndarray = selection.index.numpy()
            return index

        entries = self.exchange.draw(count, choose)
        if self.exchange.last_failure is not None:
            refuse_too_many(self.exchange.counted(), self.batches.max_failures, self.exchange.last_failure)
        return None if entries is None else (entries, scores[0])

    def _losses(self, entries: Entries) -> Losses:
        has_scores = self.batches.table is not None
        return Losses(
            torch.from_numpy(entries.online_loss),
            torch.from_numpy(entries.reference_loss) if has_scores else None,
            age_B=torch.from_numpy(self._step - entries.version),
        )

    def _read(self, entries: Entries) -> SuperBatch | dict[int, Any]:
        shards = np.searchsorted(self.exchange.starts, entries.row, side="right") - 1
        rows = (entries.row - self.exchange.starts[shards]).tolist()
        losses = entries.reference_loss.tolist()
        return self.batches.of_rows(self._reader.read(shards.tolist(), rows, entries.items, losses), self._step + 1)

    def _sub(self, batch: SuperBatch, entries: Entries, score: torch.Tensor) -> SubBatch:
        self.check(batch)
        batch = batch.to(self.device) if self.device is not None else batch
        self._ages = self._step - entries.version
        known = self._losses(entries)
        selection = Selection(torch.arange(len(batch)), score, known.online_B, known.reference_B)
        return sub_batch(batch, selection)

    def _compared(self) -> float | None:
        """The share of what the pool's losses choose, of a super-batch of it, that the present weights would choose too, with
        the same random numbers."""
        entries = self.exchange.sample(self.batches.size, self._step)
        if len(entries) < self.batches.size:
            return None
        batch = self._read(entries)
        if not isinstance(batch, SuperBatch):
            return None
        fresh = self._fresh.score(batch.to(self.device) if self.device is not None else batch).online_B
        assert fresh is not None
        self.ledger.add_outside("overlap", self.exchange.row_flops * len(entries))
        both = []
        for losses in (self._losses(entries), replace(self._losses(entries), online_B=fresh.cpu(), age_B=None)):
            selector = self.selector.copied()
            both.append(set(self._choose(selector, losses, len(entries)).index.tolist()))
        return len(both[0] & both[1]) / self.selector.b

    def metrics(self, step: int) -> dict[str, Any]:
        waited = self.exchange.waited
        return {
            "score_age": float(self._ages.mean()),
            "score_age_greatest": int(self._ages.max()),
            "pool_size": len(self.exchange.pool),
            "dropped_for_age": self.exchange.counted().get("dropped_for_age", 0),
            "learner_waited": waited["learner"],
            "scorers_waited": waited["scorers"],
            **({} if self._overlap is None else {"overlap": self._overlap}),
        }

    def told(self) -> str:
        if self._since is None:
            return ""
        began, before = self._since
        waited = (self.exchange.waited["learner"] - before) / max(1e-9, time.perf_counter() - began)
        scorers = len(self.exchange.scorers)
        return (
            f"; {counted(scorers, 'actor')}, losses {self._ages.mean():.0f} steps old, waited for them "
            f"{percent(waited)} of the time"
        )

    def examples_scored(self, steps: int) -> int:
        return self.exchange.leased

    def own_state(self) -> dict[str, Any]:
        self._confirm()
        return {**self.batches.own_state(), "counts": self.exchange.counted()}

    def scored(self) -> list[dict[str, Any]]:
        """The pool, the plan and the limiter, as a checkpoint holds them."""
        self._confirm()
        state = self.exchange.state_dict()
        self.ledger.online_score = state["leased"] * self.exchange.row_flops
        pool = state["pool"]
        pool["columns"] = {name: torch.from_numpy(column) for name, column in pool["columns"].items()}
        pool["items"] = [(item.key, item.target, item.place) for item in pool["items"]]
        return [{**state, "step": self._step}]

    def restore(self, scored: Iterable[dict[str, Any]]) -> None:
        for state in scored:
            pool = state["pool"]
            columns = {name: column.numpy() for name, column in pool["columns"].items()}
            items = [Item(*item) for item in pool["items"]]
            self.exchange.load_state_dict({**state, "pool": {**pool, "columns": columns, "items": items}})
            self._step = state["step"]

    def close(self) -> None:
        self.exchange.close()
        self.crew.close()
        self.ledger.online_score = self.exchange.flops
        self.batches.load_state_dict(self.own_state())
        super().close()


def joined(first: Entries, second: Entries) -> Entries:
    columns = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in COLUMNS}
    return Entries(**columns, items=first.items + second.items)
