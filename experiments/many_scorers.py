"""A learner with 1 to 16 machines that score for it: nobody ran it there. Checked against one actor of a benchmark.

    python experiments/many_scorers.py benchmarks/results/DATE-actors.json > experiments/results/DATE-many-scorers.json
    python experiments/many_scorers.py --table experiments/results/DATE-many-scorers.json

A simulation by events. The plan, the pool, the limiter and the exchange are those of a run, and so is the choice, of made-up
losses; only the clock is not real. A scorer takes seconds for each example, more for weights that are new to it, and a time
that varies; now and then it is lost and begins anew. The learner takes a step, or waits until it may draw.

First it is given what the benchmark measured on two cores: the learner's step without scoring, in one process, and the actor's
seconds for an example. What one actor did there at three ratios is then foretold and compared. Without the benchmark's result
nothing is checked.
"""

from __future__ import annotations

import heapq
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curate.scoring.selection import select
from curate.training.asynchronous import POOL_SUPER_BATCHES
from curate.training.exchange import Exchange, Found, Work
from curate.training.leases import Plan
from curate.training.limiter import RateLimiter, buffer_of
from curate.training.pool import Entries, Pool
from curate.training.pooling import MOST_ROWS

LEARNER = "learner"


@dataclass(frozen=True)
class Run:
    """Options of a run, and seconds: of the learner's `step`, of an `example` in a scorer, of the `weights` on their way to it.
    `spread` is the standard deviation of a scorer's seconds from lease to lease, as a share. A lease is lost with
    probability `lost`, after which the scorer needs `restart` seconds."""

    scorers: int
    b: int
    filter_ratio: float
    step: float
    example: float
    weights: float = 0.0
    spread: float = 0.0
    lost: float = 0.0
    restart: float = 60.0
    samples_per_insert: float | None = None
    refresh: int = 10
    max_age: int = 64
    steps: int = 200
    warm_up: int = 50
    shards: int = 64
    rows: int = 10_000
    lanes: int = 32

    @property
    def super_batch(self) -> int:
        return round(self.b / (1 - self.filter_ratio))

    @property
    def ratio(self) -> float:
        """Samples for each insert, as it is asked for."""
        return self.samples_per_insert or self.b / self.super_batch

    @property
    def needed(self) -> float:
        """Scorers that keep up with the learner, were all even."""
        return self.b / self.ratio * self.example / self.step


class Simulation:
    """One run. `now` is the clock; what happens later waits in a heap."""

    def __init__(self, run: Run, seed: int = 0) -> None:
        self.run, self.now = run, 0.0
        self.chance, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        scored, size = round(run.b / run.ratio), min(MOST_ROWS, run.super_batch)
        self.exchange = Exchange(
            Plan(seed=seed, lanes=run.lanes, rows=[run.rows] * run.shards, size=size),
            Pool(POOL_SUPER_BATCHES * run.super_batch, run.max_age),
            RateLimiter(run.b / scored, run.super_batch, buffer_of(run.b / scored, size, run.b)),
            batch=run.b,
            row_flops=1.0,
            most_rows=run.steps * scored,
            paid_rows=math.inf,
            clock=lambda: self.now,
        )
        self.done = 0
        self.ages: list[np.ndarray] = []
        self.waited = dict.fromkeys(self._names(), 0.0)
        self._versions: dict[str, int] = {}
        self._since: dict[str, float] = {}  # who waits, and since when
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._given: Entries | None = None

    def _names(self) -> list[str]:
        return [LEARNER, *(f"scorer {i}" for i in range(self.run.scorers))]

    def result(self) -> dict[str, float]:
        """Run it. Shares of time, ages and ratios are those after the first steps."""
        run, exchange = self.run, self.exchange
        for name in self._names()[1:]:
            exchange.join(name)
        for name in self._names():
            self._since[name] = 0.0
        exchange.publish(0, None)
        before: tuple[float, dict[str, float], int, int] | None = None
        while self.done < run.steps:
            self._let_go_on()
            self.now, _, happens = heapq.heappop(self._later)
            happens()
            if self.done == run.warm_up and before is None:
                before = self.now, self._waited(), exchange.limiter.inserted, exchange.leased
        assert before is not None
        seconds, steps = self.now - before[0], run.steps - run.warm_up
        inserted = exchange.limiter.inserted - before[2]
        waited = self._waited()
        idle = {name: max(0.0, waited[name] - before[1][name]) / seconds for name in waited}
        scorers = [idle[name] for name in idle if name != LEARNER]
        return {
            "step": seconds / steps,
            "learner idle": idle[LEARNER],
            "scorers idle": sum(scorers) / len(scorers),
            "age": float(np.mean(np.concatenate(self.ages[run.warm_up :]))),
            "greatest age": float(np.max(np.concatenate(self.ages[run.warm_up :]))),
            "samples per insert": steps * run.b / inserted,
            "dropped for age": exchange.counted().get("dropped_for_age", 0) / exchange.leased,
            "scored per step": (exchange.leased - before[3]) / steps,
        }

    def _waited(self) -> dict[str, float]:
        """Seconds until now."""
        return {name: seconds + self.now - self._since.get(name, self.now) for name, seconds in self.waited.items()}

    def _let_go_on(self) -> None:
        """Everybody who waits and need not goes on, who waits longest first."""
        may: dict[bool, Callable[[], bool]] = {
            True: lambda: self.exchange._may_draw(self.run.b),
            False: self.exchange._may_lease,
        }
        while True:
            names = sorted(self._since, key=self._since.__getitem__)
            waiting = next((name for name in names if may[name == LEARNER]()), None)
            if waiting is None:
                return
            self.waited[waiting] += self.now - self._since.pop(waiting)
            (self._train if waiting == LEARNER else partial(self._score, waiting))()

    def _after(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._later, (self.now + seconds, next(self._number), happens))

    def _train(self) -> None:
        drawn = self.exchange.draw(self.run.b, self._choose)
        assert drawn is not None
        self.ages.append(self.done - drawn.version)
        self._given = drawn
        self._after(self.run.step, self._trained)

    def _choose(self, free: Entries) -> np.ndarray:
        chosen: np.ndarray = select(torch.from_numpy(free.online_loss), self.run.b, generator=self.generator).numpy()
        return chosen

    def _trained(self) -> None:
        assert self._given is not None
        self.done += 1
        self.exchange.trained(self._given, self.done)
        if self.done % self.run.refresh == 0:
            self.exchange.publish(self.done, None)
        self._since[LEARNER] = self.now

    def _score(self, name: str) -> None:
        run, asked = self.run, self.exchange.lease(name)
        assert asked is not None
        seconds = len(asked.rows) * run.example * max(0.1, 1 + run.spread * self.chance.standard_normal())
        if self._versions.get(name, 0) != asked.version:
            self._versions[name] = asked.version
            seconds += run.weights
        if self.chance.random() < run.lost:
            self._after(seconds, lambda: self._lost(name, asked))
        else:
            self._after(seconds, lambda: self._found(name, asked))

    def _found(self, name: str, asked: Work) -> None:
        n = len(asked.rows)
        losses = self.chance.gumbel(size=(2, n)).astype(np.float32)
        self.exchange.put(asked.lease, Found(asked.rows, losses[0], losses[1], [None] * n, asked.version))
        self._since[name] = self.now

    def _lost(self, name: str, asked: Work) -> None:
        self.exchange.lost(asked.lease, "")
        self._after(self.run.restart, lambda: self._since.__setitem__(name, self.now))


# A ViT-L/14 CLIP with a ViT-S/16 beside it (175 and 9.2 GF a forward pass) on one H100 of 989 TFLOP/s at 40 %, b = 512. A machine
# that scores has four cores that decode 390 JPEGs a second each, and a small GPU that keeps up with them. 40 M weights come at
# 1 GB/s.
ON_PAPER = Run(
    scorers=1,
    b=512,
    filter_ratio=0.8,
    step=3 * (175e9 + 9.2e9) * 512 / (0.4 * 989e12),
    example=1 / (4 * 390),
    weights=4 * 40e6 / 1e9,
    spread=0.2,
)
SCORERS = (1, 2, 3, 4, 6, 8, 16)
VARIED: dict[str, dict[str, Any]] = {
    "new weights every step": {"refresh": 1},
    "new weights every 50 steps": {"refresh": 50},
    "one lease of 50 lost": {"lost": 0.02},
    "half as many samples per insert": {"samples_per_insert": 0.1},
}


def check(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What one actor did on two cores, measured and foretold."""
    figures = {figure["name"]: figure["median"] for figure in result["figures"]}
    setting = result["setting"]
    ratio = 1 - setting["filter_ratio"]
    given = Run(
        scorers=1,
        b=setting["batch_size"],
        filter_ratio=setting["filter_ratio"],
        step=(figures["one thread: a step"] - figures["one thread: scoring in a step"]) / 1000,
        example=figures["one actor: the actor, an example"] / 1000,
        refresh=setting["refresh"],
        steps=setting["steps"],
        warm_up=setting["steps"] - setting["steps_a_round"],
        shards=2,
        rows=1000,
        lanes=2,
    )
    lines = []
    sides = {"one actor": ratio, "one actor, twice the scoring": ratio / 2, "one actor, half the scoring": 2 * ratio}
    for side, asked in sides.items():
        found = Simulation(replace(given, samples_per_insert=asked)).result()
        measured = {
            "step": figures[f"{side}: a step"] / 1000,
            "learner idle": figures[f"{side}: the learner waits"] / 100,
            "scorers idle": figures[f"{side}: the actor waits"] / 100,
            "age": figures[f"{side}: mean age of a loss"],
            "samples per insert": figures[f"{side}: samples for each insert"],
        }
        lines.append({"side": side, "measured": measured, "foretold": {name: found[name] for name in measured}})
    return lines


def on_paper() -> list[dict[str, Any]]:
    runs = [("", replace(ON_PAPER, scorers=n)) for n in SCORERS]
    runs += [(what, replace(ON_PAPER, scorers=4, **changes)) for what, changes in VARIED.items()]
    return [{"varied": what, **asdict(run), "needed": run.needed, **Simulation(run).result()} for what, run in runs]


def table(result: dict[str, Any]) -> str:
    """As docs/asynchronous.md has it."""
    lines = [
        "| machines | learner waits | they wait | age: mean, greatest | samples per insert | dropped for age |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in result["on paper"]:
        what = f"{one['scorers']}{', ' if one['varied'] else ''}{one['varied']}"
        ages = f"{one['age']:.1f}, {one['greatest age']:.0f}"
        shares = [f"{100 * one[name]:.0f} %" for name in ("learner idle", "scorers idle", "dropped for age")]
        lines.append(f"| {what} | {shares[0]} | {shares[1]} | {ages} | {one['samples per insert']:.3f} | {shares[2]} |")
    if not result["check"]:
        return "\n".join(lines)
    heads = "| one actor on two cores | | step | learner waits | it waits | mean age | samples per insert |"
    lines += ["", heads, "| --- " * 7 + "|"]
    for one in result["check"]:
        for how in ("measured", "foretold"):
            of = one[how]
            shares = [f"{100 * of[name]:.0f} %" for name in ("learner idle", "scorers idle")]
            numbers = f"{of['age']:.1f} | {of['samples per insert']:.3f}"
            lines.append(
                f"| {one['side']} | {how} | {1000 * of['step']:.0f} ms | {shares[0]} | {shares[1]} | {numbers} |"
            )
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    content = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8")) if len(sys.argv) > 1 else None
    if "--table" in sys.argv:
        assert content is not None
        print(table(content))
        return
    command = " ".join(["python", "experiments/many_scorers.py", *sys.argv[1:]])
    checked = check(content) if content else []
    print(json.dumps({"command": command, "check": checked, "on paper": on_paper()}, indent=1))


if __name__ == "__main__":
    main()
