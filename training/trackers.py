"""Trackers that people watch runs with: TensorBoard, Weights & Biases, Trackio. Each is imported when it is asked for.

Opening one may fail a run, before its first step. Afterwards nothing that a tracker does ends a run.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..datasets.writing import write_whole
from ..errors import RunError, SpecError, without_secrets
from ..ledger import LINES, Ledger
from ..units import Report
from .sub_batch import SubBatch

PROJECT = "curate"
IDS = "trackers.json"
SHEET_IMAGES = 16
SMALLEST_IMAGE = 32
BINS = 64


class Tracker(Protocol):
    """One open tracker."""

    def values(self, step: int, values: Mapping[str, float]) -> None: ...
    def histogram(self, step: int, name: str, values: np.ndarray) -> None: ...

    def image(self, step: int, name: str, pixels_HWC: np.ndarray) -> None:
        """uint8 RGB."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder `tensorboard`. What an earlier try wrote after the checkpoint is hidden."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        writer = _imported("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run / "tensorboard"), purge_step=step + 1, max_queue=100)
        if not step:
            self._writer.add_text("options", f"```json\n{json.dumps(dict(config), indent=1)}\n```", 0)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        self._writer.add_histogram(name, values, step, bins=BINS)

    def image(self, step: int, name: str, pixels_HWC: np.ndarray) -> None:
        self._writer.add_image(name, pixels_HWC, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbLike:
    """Weights & Biases, or Trackio, which has its interface. A resumed run continues the run that it began.

    Steps after the checkpoint are sent again. Trackio has nothing that replaces or deletes single steps: it keeps both.
    """

    def __init__(self, package: str, run: Path, config: Mapping[str, Any], step: int) -> None:
        self._module = _imported(package, package)
        known = _ids(run)
        settings: dict[str, Any] = {
            "project": os.environ.get(f"{package.upper()}_PROJECT") or PROJECT,
            "name": run.name,
            "config": dict(config),
            "resume": "allow",
        }
        if package == "wandb":
            settings |= {"dir": str(run), "id": known.get(package)}
        self._run = self._module.init(**settings)
        name = getattr(self._run, "id", None)
        if package == "wandb" and name != known.get(package):
            write_whole(run / IDS, json.dumps({**known, package: name}).encode())

    def values(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        self._log(step, {name: self._module.Histogram(values, num_bins=BINS)})

    def image(self, step: int, name: str, pixels_HWC: np.ndarray) -> None:
        self._log(step, {name: self._module.Image(pixels_HWC)})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._module.log(values, step=step)

    def close(self) -> None:
        self._module.finish()


OPENERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda run, config, step: WandbLike("wandb", run, config, step),
    "trackio": lambda run, config, step: WandbLike("trackio", run, config, step),
}


class Trackers:
    """The trackers of a run, not open yet. Raises SpecError where a package is not installed.

    A failure of one that is open is said once, and the run continues.

    Values come with every line of metrics, a histogram of scores too, every `every`-th step. A sheet of images of what was
    kept and dropped comes with the 1st, 2nd, 4th, 8th ... of them.
    """

    def __init__(self, names: Sequence[str], run: Path, config: Mapping[str, Any], every: int, report: Report) -> None:
        self._names, self._run, self._config = tuple(names), run, config
        self._every, self._report = every, report
        self._open: dict[str, Tracker] = {}
        self._failed: set[str] = set()
        for name in names:  # what is missing is said before the data and the models are loaded
            _imported(name, name)

    def start(self, step: int) -> None:
        """Open all, for a run that continues after `step`. Raises RunError where one cannot be opened."""
        for name in self._names:
            try:
                self._open[name] = OPENERS[name](self._run, self._config, step)
            except Exception as e:
                self.close()
                raise RunError(
                    f"--report-to {name}: cannot be opened ({without_secrets(str(e) or type(e).__name__)}); correct that, or "
                    "leave it out"
                ) from e

    def metric(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, with the totals of its regimes where it has the ledger's."""
        self._each(lambda tracker: tracker.values(int(line["step"]), dict(_flat({**line, **_regimes(line)}))))

    def summary(self, step: int, summary: Mapping[str, Any]) -> None:
        """The quality of a finished run, and its totals."""
        values = dict(_flat({key: summary.get(key) for key in ("quality", "seconds", "regimes")}))
        self._each(lambda tracker: tracker.values(step, values))

    def selection(self, step: int, sub: SubBatch) -> None:
        """The scores of a super-batch, and now and then images of what was kept and dropped."""
        score = sub.selection.score
        if step % self._every or score is None or not self._open:
            return
        scores = score.detach().float().cpu().numpy()
        index = sub.selection.index.cpu().numpy()
        finite = scores[np.isfinite(scores)]
        self._each(lambda tracker: tracker.histogram(step, "scores/all", finite))
        self._each(lambda tracker: tracker.histogram(step, "scores/selected", scores[index]))
        nth = step // self._every
        if nth & (nth - 1) == 0:
            self._each(lambda tracker: self._sheet(tracker, step, sub, index))

    def _sheet(self, tracker: Tracker, step: int, sub: SubBatch, index: np.ndarray) -> None:
        pixels = next((view for view in sub.drawn.views.values() if view.dtype == torch.uint8 and view.ndim == 4), None)
        if pixels is None or sub.drawn.division is not None:
            return
        dropped = np.setdiff1d(np.arange(len(pixels)), index)
        for name, rows in (("kept", index), ("dropped", dropped)):
            if len(rows):
                tracker.image(
                    step, f"examples/{name}", grid(pixels[torch.from_numpy(rows[:SHEET_IMAGES])].cpu().numpy())
                )

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in self._open.items():
            try:
                do(tracker)
            except Exception as e:
                if name not in self._failed:
                    self._failed.add(name)
                    self._report(f"{name}: {without_secrets(str(e) or type(e).__name__)}; the run continues")

    def close(self) -> None:
        """Write what is left. Never raises."""
        self._each(lambda tracker: tracker.close())
        self._open = {}


def grid(images_NHWC: np.ndarray) -> np.ndarray:
    """One image of up to SHEET_IMAGES, in rows of eight, small ones enlarged: uint8 [H, W, 3]."""
    times = max(1, -(-SMALLEST_IMAGE // images_NHWC.shape[1]))
    images = images_NHWC.repeat(times, axis=1).repeat(times, axis=2)
    N, H, W, C = images.shape
    columns = min(N, SHEET_IMAGES // 2)
    rows = -(-N // columns)
    sheet = np.full((rows * (H + 2), columns * (W + 2), C), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (H + 2), i % columns * (W + 2)
        sheet[top : top + H, left : left + W] = image
    return sheet


def _regimes(line: Mapping[str, Any]) -> dict[str, Any]:
    flops = line.get("flops") or {}
    known: dict[str, Any] = {
        name: flops.get(name) for name in LINES if flops.get(name) is not None or name == "reference_train"
    }
    in_run = line.get("flops_in_run") or {}
    known["scored_in_run"], known["trained_in_run"] = (
        in_run.get(f"reference_{what}", 0.0) for what in ("score", "train")
    )
    return {"regimes": Ledger(**known).regimes()} if flops else {}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by the path of their keys: `flops/learner_train`. What is no finite number is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and key != "step":
            yield f"{above}{key}" if above else f"train/{key}", float(value)


def _imported(package: str, module: str) -> Any:
    """Raises SpecError where the package is not installed."""
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as e:
        raise SpecError(
            f"--report-to {package} needs the package {package} ({e}); install it: pip install {package}, or "
            "pip install 'curate[trackers]' for all"
        ) from None


def _ids(run: Path) -> dict[str, str]:
    """The run's name at each tracker that gives it one."""
    try:
        known = json.loads((run / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
