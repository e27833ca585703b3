"""Scorers in threads of this process, in place of Ray's actors: they can be lost, late or old on command."""

from __future__ import annotations

import copy
import threading
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from curate.training import actors
from curate.training.exchange import LostScorerError, work
from curate.training.lease_scorer import LeaseScorer
from curate.training.pool import Pool

STEPS = 24


def options_of(digits, out, name="run", **changes):
    return digits.run_options(out, name=name, **{"steps": STEPS, "actors": 2, "refresh": 2, "max_age": 20, **changes})


class ThreadCrew:
    """Stands for RayCrew. `faults` maps the number of a question, counted over all scorers, to what happens to it: "killed"
    and "gone" (the scorer does not answer; then it is back, or not), "old" (it answers with the weights of before)."""

    made: ClassVar[list[ThreadCrew]] = []

    def __init__(self, job, count, run, report, faults=None):
        self.job, self.count, self.faults = job, count, faults or {}
        self.asked, self.lock = 0, threading.Lock()
        self.threads, self.exchange = [], None
        ThreadCrew.made.append(self)

    def start(self, exchange):
        self.exchange = exchange
        for number in range(self.count):
            self.add(f"actor {number}")

    def add(self, name):
        job = copy.deepcopy(self.job)
        scorer = LeaseScorer(job, torch.device("cpu"), 1)

        def ask(asked):
            with self.lock:
                self.asked += 1
                fault = self.faults.get(self.asked)
            if fault in ("killed", "gone"):
                raise LostScorerError(fault, gone=fault == "gone")
            if scorer.version != asked.version and not (fault == "old" and scorer.version >= 0):
                scorer.load(asked.version, asked.weights)
            return scorer.score(asked.lease.shard, asked.rows)

        self.exchange.join(name)
        self.threads.append(threading.Thread(target=work, args=(self.exchange, name, ask), daemon=True))
        self.threads[-1].start()

    def payload(self, weights):
        return weights

    def close(self):
        for thread in self.threads:
            thread.join()


@contextmanager
def thread_crews(faults=None):
    """Within, runs with actors use threads. Gives the list of (row, epoch) that were trained on, in order."""
    trained, whole = [], Pool.trained

    def noted(pool, entries):
        trained.append(list(zip(entries.row.tolist(), entries.epoch.tolist(), strict=True)))
        whole(pool, entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors, "RayCrew", lambda *given: ThreadCrew(*given, faults=faults))
        patch.setattr(Pool, "trained", noted)
        yield trained
