"""Where scorers and the learner meet: leases go out, scored examples come in, the learner draws. Nothing polls: each side
waits until the other changed something.

Everything that has to agree (the plan, the pool, the limiter, the FLOPs) is changed under one lock, and is one state.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..datasets.readers import Failure
from ..errors import ActorError, CurateError
from .leases import Lease, Plan
from .limiter import RateLimiter
from .pool import Entries, Pool


@dataclass(frozen=True)
class Work:
    """What a scorer is asked: these `rows` of a shard, int64 [n], by the weights of `version`, which are in `weights`."""

    lease: Lease
    rows: np.ndarray
    version: int
    weights: Any


@dataclass(frozen=True)
class Found:
    """What a scorer answers: of the n rows that can be used their numbers within the shard, both losses float32 [n] and what
    the learner needs to read each; the bad ones; how many the join left out, by reason; the version that scored."""

    rows: np.ndarray
    online_loss: np.ndarray
    reference_loss: np.ndarray
    items: list[Any]
    version: int
    failures: list[Failure] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


class LostScorerError(Exception):
    """A scorer did not answer. It may be asked again, unless it is `gone`."""

    def __init__(self, why: str, *, gone: bool) -> None:
        super().__init__(why)
        self.gone = gone


class Exchange:
    """`row_flops` is what scoring a row costs: it is charged as its lease goes out, whatever comes back, so no FLOP is
    uncounted. The learner draws `batch` at a time. No more than `most_rows` are scored in all unless it would lack some, and
    at most `paid_rows` leased, which the budget pays for.
    """

    def __init__(
        self,
        plan: Plan,
        pool: Pool,
        limiter: RateLimiter,
        *,
        batch: int,
        row_flops: float,
        most_rows: int,
        paid_rows: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan, self.pool, self.limiter = plan, pool, limiter
        self.batch, self.row_flops, self.most_rows, self.paid_rows = batch, row_flops, most_rows, paid_rows
        self.starts = np.concatenate([[0], np.cumsum(plan.rows)])  # the number of each shard's first row
        self.leased = 0
        self.counts: Counter[str] = Counter()
        self.last_failure: Failure | None = None
        self.scorers: set[str] = set()
        self.waited = {"scorers": 0.0, "learner": 0.0}
        self._version, self._weights = -1, None
        self._error: BaseException | None = None
        self._lost = ""
        self._closed = False
        self._clock = clock
        self._changed = threading.Condition()

    @property
    def flops(self) -> float:
        """Charged so far."""
        return self.leased * self.row_flops

    def publish(self, version: int, weights: Any) -> None:
        """From now on leases are scored by these weights."""
        with self._changed:
            self._version, self._weights = version, weights
            self._changed.notify_all()

    def join(self, scorer: str) -> None:
        with self._changed:
            self.scorers.add(scorer)

    def leave(self, scorer: str) -> None:
        """A scorer is gone for good."""
        with self._changed:
            self.scorers.discard(scorer)
            self.plan.leave(scorer)
            self._changed.notify_all()

    def lease(self, scorer: str) -> Work | None:
        """The scorer's next work, waited for; None once there is none any more."""
        with self._changed:
            began = self._clock()
            self._changed.wait_for(lambda: self._closed or self._may_lease())
            self.waited["scorers"] += self._clock() - began
            if self._closed:
                return None
            lease = self.plan.lease(scorer, self.paid_rows - self.leased)
            self.leased += len(lease)
            return Work(lease, self.plan.rows_of(lease), self._version, self._weights)

    def put(self, lease: Lease, found: Found) -> bool:
        """Take what a scorer found; not where its lease was handed out again meanwhile."""
        with self._changed:
            if not self.plan.done(lease):
                self.counts["answers_refused"] += 1
                return False
            n = len(found.rows)
            columns = {"online_loss": found.online_loss, "reference_loss": found.reference_loss}
            same = {"epoch": np.full(n, lease.epoch), "version": np.full(n, found.version)}
            self.pool.add(Entries(row=self.starts[lease.shard] + found.rows, items=found.items, **columns, **same))
            self.limiter.inserted += n
            self.leased -= len(lease) - n  # what could not be used was not scored
            if lease.epoch == 0:
                self.counts.update(examples=n, failures=len(found.failures), **found.left_out)
                self.last_failure = found.failures[-1] if found.failures else self.last_failure
            self._changed.notify_all()
            return True

    def lost(self, lease: Lease, why: str) -> None:
        """A lease will not be answered: its rows are handed out again."""
        with self._changed:
            if self._closed:  # nobody waits for it
                return
            self.plan.lost(lease)
            self.counts["leases_lost"] += 1
            self._lost = why
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the run with this error."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def draw(self, count: int, choose: Callable[[Entries], np.ndarray]) -> Entries | None:
        """Take `count` entries, waited for; `choose` says which of the free ones. None where the budget pays for no more.

        Raises what a scorer failed with, and ActorError where nobody is left to score.
        """
        with self._changed:
            began = self._clock()
            self._changed.wait_for(lambda: self._error or self._may_draw(count) or self._stuck())
            self.waited["learner"] += self._clock() - began
            if self._error is not None:
                raise self._error
            if not self._may_draw(count):
                if self.scorers or not self._may_pay():
                    return None
                raise ActorError(
                    f"no scorer is left ({self._lost or 'all ended'}); start again with --resume: it continues from the last "
                    "checkpoint"
                )
            drawn = self.pool.draw(choose)
            self.limiter.sampled += count
            self._changed.notify_all()
            return drawn

    def trained(self, entries: Entries, step: int) -> None:
        """The learner has trained on these: `step` steps are done."""
        with self._changed:
            self.pool.trained(entries)
            self.pool.advance(step)
            self._changed.notify_all()

    def bad(self, entries: Entries) -> None:
        """Of what was drawn these cannot be used. As many may be drawn in their place."""
        with self._changed:
            self.pool.bad(entries)
            self.limiter.sampled -= len(entries)

    def sample(self, count: int, seed: int) -> Entries:
        """So many of the free entries at random, or all; they stay free."""
        with self._changed:
            free = self.pool.free()
            index = np.random.default_rng(seed).choice(len(free), min(count, len(free)), replace=False)
            return free.take(np.sort(index))

    def counted(self) -> dict[str, int]:
        """What became of all rows so far."""
        with self._changed:
            return dict(self.counts + self.pool.counts)

    def close(self) -> None:
        """Hand nothing out any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def state_dict(self) -> dict[str, Any]:
        """Of tensors' values, numbers and names; what is under way counts as not begun, but its FLOPs as spent."""
        with self._changed:
            return {
                "plan": self.plan.state_dict(),
                "pool": self.pool.state_dict(),
                "limiter": self.limiter.state_dict(),
                "leased": self.leased,
                "counts": dict(self.counts),
                "waited": dict(self.waited),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with self._changed:
            for name in ("plan", "pool", "limiter"):
                getattr(self, name).load_state_dict(state[name])
            self.leased, self.counts = state["leased"], Counter(state["counts"])
            self.waited = dict(state["waited"])

    def _may_pay(self) -> bool:
        return self.leased + 1 <= self.paid_rows

    def _may_lease(self) -> bool:
        begun, held, size = self.plan.begun, len(self.pool), self.plan.size
        if self._version < 0 or not self._may_pay():
            return False
        if held + begun >= self.batch and self.limiter.inserted + begun >= self.most_rows:
            return False
        return self.limiter.may_insert(size, held, begun)

    def _may_draw(self, count: int) -> bool:
        held = len(self.pool)
        if self.limiter.may_sample(count, held):
            return True
        # The last steps draw from what is left, where no more is scored.
        return held >= count and not self.plan.begun and not self._may_lease()

    def _stuck(self) -> bool:
        """Whether waiting is in vain."""
        return not self.plan.begun and (not self.scorers or not self._may_lease())


def work(exchange: Exchange, scorer: str, score: Callable[[Work], Found]) -> None:
    """Give one scorer, which has joined, its leases, one after another, until there are no more or it is gone. Runs in a
    thread of its own."""
    try:
        while (asked := exchange.lease(scorer)) is not None:
            try:
                exchange.put(asked.lease, score(asked))
            except LostScorerError as e:
                exchange.lost(asked.lease, f"{scorer}: {e}")
                if e.gone:
                    return
            except CurateError as e:
                exchange.fail(e)
                return
    except BaseException as e:  # a bug: it belongs to the main thread
        exchange.fail(e)
    finally:
        exchange.leave(scorer)
