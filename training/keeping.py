"""What is measured and kept of a learner while it trains: quality on the test split, the best weights, weights by step.

All of it belongs to the beginning of the step that follows: a run that resumes after step N measures and keeps what is due
after step N again, and so ends with what an undisturbed run has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ..datasets.writing import write_errors
from ..errors import CurateError, StoppedError
from ..scoring.loading import save_tensors
from .group import Group
from .records import RunRecords
from .trainee import Trainee

BEST = "learner-best"
# So many of the best weights may be on the disk at one time: a new one, and those of two checkpoints.
BEST_KEPT = 3


class Keeping:
    """`measure` returns all measures of the learner, of which `quality` is the one that the best weights are chosen by;
    `measure_reference` those of the reference by whose scores is chosen, which are measured once.

    `evaluate_every` and `keep_every` are steps, None for never; after the last of `steps` neither is due, since the end of
    a run measures and keeps its weights itself. Of a `group` all ranks call it, and rank 0 writes.
    """

    def __init__(
        self,
        run: Path,
        learner: Trainee,
        records: RunRecords,
        measure: Callable[[], Mapping[str, float]],
        *,
        measure_reference: Callable[[], Mapping[str, float]] | None = None,
        quality: str,
        steps: int,
        evaluate_every: int | None = None,
        keep_every: int | None = None,
        group: Group | None = None,
    ) -> None:
        self._folder, self._learner, self._records, self._measure = run / "checkpoints", learner, records, measure
        self._named, self._steps = quality, steps
        self._evaluate_every, self._keep_every = evaluate_every, keep_every
        self._group = group or Group()
        self._measure_reference, self._passed = measure_reference, False
        self.reference: float | None = None
        self.best: tuple[int, float] | None = None
        self._best_then: tuple[int, float] | None = None

    def resume(self) -> None:
        """Know the best of what was measured by the records; let go of what was measured later."""
        self.best = None
        for at, quality in self._group.first(lambda: list(self._records.measured())):
            self._better(at, quality.get(self._named))
        self._best_then = self.best
        if self._group.is_first:
            self._prune()

    def end_at(self, steps: int) -> None:
        """The run ends after so many steps."""
        self._steps = steps

    def keeps(self, step: int) -> bool:
        return self._due(self._keep_every, step)

    def keep(self, step: int) -> None:
        """Write the weights after `step`."""
        self._write(self._folder / f"learner-{step:09d}.safetensors")

    def measures(self, step: int) -> bool:
        return self._due(self._evaluate_every, step)

    def quality(self) -> Mapping[str, float]:
        """All measures of the learner as it is now; whether it is better than its reference is logged once. A collective."""
        with self._learner.whole(result=True):
            found = self._measure()
        self._beside_reference(found.get(self._named))
        return found

    def _beside_reference(self, quality: float | None) -> None:
        if self._measure_reference is not None:
            measure, self._measure_reference = self._measure_reference, None
            with suppress(CurateError):  # the learner's own evaluation says what is wrong with the test split
                self.reference = measure().get(self._named)
        if quality is not None and self.reference is not None and quality > self.reference and not self._passed:
            self._passed = True
            self._records.log(
                f"the learner has passed its reference: {self._named} {quality:.4g}, the reference {self.reference:.4g}; where"
                " that was measured, choosing gained little from there on (docs/findings.md)"
            )

    def measure(self, step: int) -> Mapping[str, float]:
        """The learner's quality after `step`; its weights are written where it is the best so far. Where the test split
        cannot be read just now, that is logged, and the run goes on. A collective."""
        try:
            quality = self.quality()
        except StoppedError:
            raise
        except CurateError as e:
            self._records.log(f"not evaluated after step {step:,}: {e}")
            return {}
        if self._better(step, quality.get(self._named)):
            self._write(self._file(step))
        return quality

    def saved(self) -> None:
        """After rank 0 wrote a checkpoint: let go of weights that no checkpoint's best are."""
        keep, self._best_then = self._best_then, self.best
        self._prune(keep)

    def finish(self, step: int, quality: Mapping[str, float]) -> dict[str, float] | None:
        """Leave the best weights of the run, whose last have this quality, under their final name. Returns what the summary
        tells of them, None where nothing was measured on the way."""
        if self._evaluate_every is None:
            return None
        final = self._folder / f"{BEST}.safetensors"
        if self._better(step, quality.get(self._named)):
            self._write(final)
        with self._group.together(), write_errors(final):
            if self._group.is_first:
                if self.best is not None and self._file(self.best[0]).exists():
                    self._file(self.best[0]).replace(final)
                for file in self._bests():
                    file.unlink()
        return {"step": self.best[0], self._named: self.best[1]} if self.best else None

    def _due(self, every: int | None, step: int) -> bool:
        return every is not None and 0 < step < self._steps and step % every == 0

    def _better(self, step: int, quality: float | None) -> bool:
        better = quality is not None and (self.best is None or quality > self.best[1])
        if better and quality is not None:
            self.best = (step, quality)
        return better

    def _write(self, path: Path) -> None:
        state = self._learner.state(optimizer=False)
        with self._group.together():
            if self._group.is_first:
                save_tensors(state.result, path)

    def _file(self, step: int) -> Path:
        return self._folder / f"{BEST}-{step:09d}.safetensors"

    def _prune(self, *more: tuple[int, float] | None) -> None:
        kept = {self._file(best[0]) for best in (self.best, *more) if best}
        for file in self._bests() - kept:
            file.unlink()

    def _bests(self) -> set[Path]:
        return set(self._folder.glob(f"{BEST}-*.safetensors"))
