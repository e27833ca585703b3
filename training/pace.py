"""How often a run logs, saves and shows where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..ledger import Ledger
from ..progress import Progress
from ..units import Report, format_flops, percent

# Without --checkpoint-every: so often, but never more than a fiftieth of the time goes into checkpoints.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 30.0, 0.02


class Pace:
    """`log_every` and `checkpoint_every` are steps; without `checkpoint_every` the clock decides."""

    def __init__(
        self, steps: int, batch_size: int, *, log_every: int, checkpoint_every: int | None, report: Report
    ) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self._report = report
        self._progress: Progress | None = None

    def start(self, step: int, what: str) -> None:
        """Measure from here, after `step` steps of a run that is called `what`."""
        self._what, self._began = what, step
        self._measure_from(step)
        self._next_save = time.perf_counter() + CHECKPOINT_SECONDS

    def _measure_from(self, step: int) -> None:
        self._first_step = step
        self._progress = Progress(self._report, self._what, self.steps, first=step)

    def end_at(self, steps: int) -> None:
        """The run ends after so many steps."""
        self.steps = steps
        if self._progress is not None:
            self._progress.expect(steps)

    def stop(self) -> None:
        """Show nothing more."""
        if self._progress is not None:
            self._progress.close()

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due; none is at the end, where the final weights are written."""
        self._save_began = time.perf_counter()
        if step == self.steps:
            return False
        return step % self.checkpoint_every == 0 if self.checkpoint_every else self._save_began > self._next_save

    def saved(self) -> None:
        now = time.perf_counter()
        self._next_save = now + max(CHECKPOINT_SECONDS, (now - self._save_began) / CHECKPOINT_SHARE)

    def show(self, step: int, loss: torch.Tensor, ledger: Ledger, more: Callable[[], str] = lambda: "") -> None:
        """Show people how far the run is, now and then. `more` adds words."""
        if step == self._began + 1:  # it also waits for what starts: actors, first reads, a compiler
            self._measure_from(step)
            return
        progress = self._progress
        assert progress is not None

        def words() -> str:
            rate = (step - self._first_step) * self.batch_size / progress.seconds
            return (
                f"step {step:,}/{self.steps:,}, {rate:,.0f} examples/s trained, loss {float(loss):.3f}, "
                f"{format_flops(ledger.spent)} spent, {percent(step / self.steps)} of the budget{more()}"
            )

        progress.update(step, words)
