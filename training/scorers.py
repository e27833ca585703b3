"""Sub-batches of a run in which some ranks score and the others train (`--scorers`).

All ranks meet once a step: the scorers hand over what they chose of a super-batch. Then the others take the step on it, and
the scorers meanwhile read, score and choose the next one. Who talks to whom, in the same order at every step:

1. all agree that nobody failed;
2. the first scorer tells all the losses and the choice;
3. the scorers give the trainers the chosen rows, b / (W - S) to each;
4. after every `refresh` steps rank 0 gives the scorers the weights of the model that scores;
5. the trainers average gradients among themselves, the scorers share losses among themselves;
6. all write their records and agree on signals and checkpoints: the loop's part.

Nobody can wait for somebody who waits for him, since groups whose collectives are under way at one time (5) have no rank in
common, and all else comes in this order on every rank. Which weights score a super-batch is a function of its number alone,
so that neither clocks nor speeds change the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..datasets.readers import Failure
from ..errors import StoppedError
from ..scoring.selection import Selection
from ..scoring.selector import Selector
from .batch import SuperBatch
from .late import made
from .roles import Roles, values_of
from .score_ahead import tensors_of
from .scorer import RunScorer
from .sub import SubBatches
from .sub_batch import SubBatch, sub_batch
from .superbatch import SuperBatches


def scored_after(number: int, refresh: int) -> int:
    """After how many steps the weights were taken that score super-batch `number`, counted from 1.

    It is scored while step number - 1 is taken, by what was sent last before that.
    """
    return max(0, number - 2) // refresh * refresh


@dataclass(frozen=True)
class Ready:
    """A super-batch of which a scorer knows who is chosen, with this scorer's rows of it, the failures among them all, and
    where the stream stood behind it."""

    batch: SuperBatch
    selection: Selection
    failures: list[Failure]
    state: dict[str, Any]


class ScorersSubBatches(SubBatches):
    """What the ranks of one role give those of the other, as sub-batches: on a scorer they have no examples.

    `batches` is the stream of the scorers' group. On a rank that trains it draws nothing.
    """

    def __init__(
        self,
        batches: SuperBatches,
        selector: Selector,
        *,
        roles: Roles,
        refresh: int,
        scorer: RunScorer,
        last: int,
        device: torch.device,
        timing: Callable[[str], AbstractContextManager[Any]],
        check: Callable[[SuperBatch], None],
    ) -> None:
        super().__init__(batches, selector, scorer=scorer, device=device, timing=timing, check=check, last=last)
        self.roles, self.refresh = roles, refresh
        self.group, self.training, self.trains = roles.everybody, roles.training, roles.trains
        self.least_rows = selector.b // roles.training
        self._run_scorer = scorer
        self._given = 0
        self._ready: Ready | None = None
        self._error: BaseException | None = None
        self._source: Iterator[SuperBatch] | None = None
        self._restored = False

    def __iter__(self) -> Iterator[SubBatch]:
        self._refuse_differences()
        self._send_weights(fresh=not self._restored)
        if not self.trains:
            self._source = self.batches.stream(lambda batch: batch, self._seen_before_the_choice(), 1)
        self.meanwhile()
        while True:
            yield self._met()

    def meanwhile(self) -> None:
        """On a scorer: read and score the next super-batch, and choose. What goes wrong is raised when all ranks meet."""
        if self.trains or self._given == self.last:
            return
        self._ready = None
        try:
            self._ready = self._next()
        except (Exception, StoppedError) as e:
            self._error = e

    def _next(self) -> Ready:
        assert self._source is not None
        with self.timing("data"):
            batch = next(self._source)
        state = self.batches.own_state()
        with self.timing("score"):
            with self.batches.group.together():
                self.check(batch)
                batch = self._here(batch)
                known = self._known(self._run_scorer.copied[1], batch)
            known = self._everybodys(known, batch)
        with self.timing("select"):
            selection = self._choose(self.selector, known, self.batches.size)
        with self.timing("decode"):
            batch, selection, failures = made(batch, selection)
        return Ready(batch, selection, failures, state)

    def _met(self) -> SubBatch:
        """Steps 1 to 4 of a meeting."""
        self._given += 1
        number, ready = self._given, self._ready
        with self.timing("data"), self.group.together():
            if self._error is not None:
                raise self._error
            if ready is not None:
                self.batches.count_chosen(ready.failures)
                self._turn = ready.state
        with self.timing("select"):
            selection = self._told(ready)
        with self.timing("decode"):
            batch = self._no_rows(number) if ready is None else ready.batch
            division = self.roles.division(number - 1, self.batches.size, self.batches.lanes)
            sub = sub_batch(replace(batch, division=division), selection)
        done = number - 1
        if done and done % self.refresh == 0 and number != self.last:
            self._send_weights(fresh=True)
        return sub

    def _no_rows(self, number: int) -> SuperBatch:
        """What a rank that trains holds of a super-batch before it is given rows."""
        found = self.batches.of_rows((), number)
        assert isinstance(found, SuperBatch)
        return self._here(found)

    def _told(self, ready: Ready | None) -> Selection:
        """The choice, as the first scorer tells it, with the random numbers behind it. A collective."""
        known = torch.full((3, self.batches.size), torch.nan)
        index = torch.zeros(self.selector.b, dtype=torch.int64)
        if ready is not None:
            found = ready.selection
            for row, values in zip(known, (found.score, found.online_loss, found.reference_loss), strict=True):
                if values is not None:
                    row.copy_(values)
            index.copy_(found.index)
        generator = self.selector.generator.get_state()
        self.group.broadcast([known, index, generator], source=self.training)
        if ready is not None:
            return ready.selection
        self.selector.generator.set_state(generator)
        score, online, reference = known
        return Selection(index, score, online, reference if self.selector.policy.reference != "none" else None)

    def _send_weights(self, *, fresh: bool) -> None:
        """Give the scorers the present weights, or those that they had last. A collective."""
        if not self.roles.sends:
            return
        if fresh and self.group.is_first:
            self._run_scorer.snapshot()
        for copied in self._run_scorer.copied[0]:
            self.roles.send(copied.module)

    def _age(self, number: int) -> int:
        return number - 1 - scored_after(number, self.refresh)

    def metrics(self, step: int) -> dict[str, Any]:
        return {"score_age": self._age(step)}

    def own_state(self) -> dict[str, Any]:
        now = self.batches.own_state()
        return {**self._turn, "bad_chosen": now["bad_chosen"]} if self._turn else now

    def whole_state(self, own: dict[str, Any]) -> dict[str, Any]:
        """On every rank: what the scorers' stream is. A collective."""
        found = None if self.trains else self.batches.whole_state(own)
        whole: dict[str, Any] = self.group.share(found)[self.training] or {}
        return whole

    def scored(self) -> list[dict[str, Any]]:
        """The weights that score the next super-batch, on rank 0. That one is scored again at a resume."""
        if not self.group.is_first:
            return []
        return [{"weights": [values_of(copied.module) for copied in self._run_scorer.copied[0]]}]

    def restore(self, scored: Iterable[dict[str, Any]]) -> None:
        if not self.roles.sends:
            return
        for state in scored:
            for copied, values in zip(self._run_scorer.copied[0], state["weights"], strict=True):
                for mine, then in zip(tensors_of(copied.module), values, strict=True):
                    mine.copy_(then)
            self._restored = True

    def resume(self, batches: Mapping[str, Any], scored: Iterable[dict[str, Any]]) -> None:
        self._given = batches["drawn"]
        with self.group.together():
            if not self.trains:
                self.batches.load_state_dict(batches)
        self.restore(scored)
