"""What a run writes while it goes: metrics, selections, the log. Cut back to the checkpoint when it resumes."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..datasets.writing import whole_file, write_errors, write_whole
from ..errors import RunError, SpecError, without_secrets
from ..progress import Bar
from ..scoring.selection import Selection
from ..units import Report
from .batch import SuperBatch
from .local import whole_selection
from .options import RunOptions
from .sub_batch import SubBatch
from .trackers import Trackers

SELECTION_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("online_loss", pa.float32()),
        ("reference_loss", pa.float32()),
        ("score", pa.float32()),
        ("selected", pa.bool_()),
    ]
)
ROWS_PER_FILE = 1 << 18


class SelectionLog:
    """Records of who was chosen, as Parquet files FIRST-LAST.parquet in a folder: every `every`-th step's super-batch whole.

    Steps count from 1. `flush` before a checkpoint, so that no file spans one; `cut_after` the checkpoint's step when
    resuming.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 1, *, writes: bool = True) -> None:
        if every < 1:
            raise SpecError(f"every is {every}, expected at least 1 step")
        self.folder, self.every, self._writes = Path(folder), every, writes
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        if writes:
            with write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, batch: SuperBatch, selection: Selection) -> None:
        """Record the super-batch of a step and what was selected of it; nothing for steps that are not recorded.

        Losses that the policy does not use are null. In a group all ranks call it, and rank 0 writes.
        """
        if step < 1:
            raise SpecError(f"step is {step}; steps count from 1")
        if step % self.every or selection.score is None:
            return
        shards, keys = batch.whole_names()
        selection = whole_selection(batch, selection)
        score_B = selection.score
        assert score_B is not None
        if not self._writes or (batch.division is not None and not batch.division.group.is_first):
            return
        B = len(shards)
        if len(score_B) != B:
            raise SpecError(f"the selection is one of {len(score_B)} examples, the batch has {B}; give sub.drawn")
        selected = torch.zeros(B, dtype=torch.bool)
        selected[selection.index.cpu()] = True
        nothing = np.full(B, np.nan, dtype=np.float32)
        online, reference, score = (
            nothing if values is None else values.float().cpu().numpy()
            for values in (selection.online_loss, selection.reference_loss, score_B)
        )
        columns = [
            np.full(B, step, dtype=np.int32),
            shards,
            keys,
            pa.array(online, from_pandas=True),
            pa.array(reference, from_pandas=True),
            score,
            selected.numpy(),
        ]
        self._held.append(pa.record_batch(columns, schema=SELECTION_SCHEMA))
        self._rows += B
        if self._rows >= ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one file, named by its first and last step."""
        if not self._held:
            return
        table = pa.Table.from_batches(self._held)
        first, last = table["step"][0].as_py(), table["step"][-1].as_py()
        path = self.folder / f"{first:09d}-{last:09d}.parquet"
        with whole_file(path) as partial:
            pq.write_table(table, partial, compression="zstd")
        self._held, self._rows = [], 0

    def cut_after(self, step: int) -> None:
        """Forget what was written after `step`."""
        self._held = [rows for rows in self._held if rows["step"][0].as_py() <= step]
        self._rows = sum(rows.num_rows for rows in self._held)
        for file in self.folder.glob(f"{'[0-9]' * 9}-{'[0-9]' * 9}.parquet"):
            if int(file.stem.split("-")[1]) > step:
                file.unlink(missing_ok=True)  # each rank of a group may call it


class RunRecords:
    """The files of a run folder that grow: metrics, the log, the selections. Of several ranks, only the one that `writes`
    touches them."""

    def __init__(self, run: Path, echo: Report, *, writes: bool = True) -> None:
        self.run, self._writes = run, writes
        self._echo = echo if writes else _silent
        self._selections = SelectionLog(run / "selections", writes=writes)
        self.trackers: Trackers | None = None

    def track(self, options: RunOptions) -> None:
        """Send the same to the trackers that the user asks for, from the first step on. Raises SpecError for one that is
        not installed."""
        names, config = options.records.report_to, plain(options.to_dict())
        if names and self._writes:
            self.trackers = Trackers(names, self.run, config, options.records.log_every, self.log)

    def cut_after(self, step: int) -> None:
        """Forget what was written after `step`, where a resumed run goes on: it measures the quality after `step` again."""
        if not self._writes:
            return
        metrics = self.run / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line, at in ((line, step_of(line)) for line in lines) if 0 < at <= step]
            if kept and step_of(kept[-1]) == step and "quality" in json.loads(kept[-1]):
                kept.pop()
            write_whole(metrics, "".join(f"{line}\n" for line in kept).encode())
        self._selections.cut_after(step)
        if self.trackers is not None:
            self.trackers.start(step)

    def record_selections(self, every: int) -> None:
        """Record every so many steps' selections."""
        self._selections.every = every

    def measured(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, quality) of each evaluation that is on a line of metrics."""
        metrics = self.run / "metrics.jsonl"
        if metrics.exists():
            for line in metrics.read_text(encoding="utf-8").splitlines():
                values = json.loads(line)
                if values.get("quality"):
                    yield int(values["step"]), values["quality"]

    def metric(self, values: dict[str, Any]) -> None:
        self._append("metrics.jsonl", json.dumps(plain(values), allow_nan=False))
        if self.trackers is not None:
            self.trackers.metric(values)

    def log(self, text: str) -> None:
        """A line for people: to the terminal, and to log.txt with the time."""
        self._echo(without_secrets(text))
        self.note(text)

    __call__ = log

    def note(self, text: str) -> None:
        """A line for log.txt alone, while a bar is on the terminal."""
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {without_secrets(text)}")

    def bar(self, what: str) -> Bar | None:
        """The terminal's bar; None where there is no terminal."""
        draw = getattr(self._echo, "bar", None)
        return draw(what) if draw else None

    def _append(self, name: str, line: str) -> None:
        if not self._writes:
            return
        path = self.run / name
        with write_errors(path), path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(line + "\n")

    def selection(self, step: int, sub: SubBatch) -> None:
        self._selections.write(step, sub.drawn, sub.selection)
        if self.trackers is not None:
            self.trackers.selection(step, sub)

    def flush(self) -> None:
        self._selections.flush()

    def finished(self, summary: dict[str, Any]) -> None:
        """What trackers show of a finished run."""
        if self.trackers is not None:
            self.trackers.summary(summary["steps"], summary)

    def close(self) -> None:
        if self.trackers is not None:
            self.trackers.close()


def _silent(line: str) -> None:
    """The report of a rank that writes nothing."""


def step_of(line: str) -> int:
    """The step of a line of metrics; 0 where a kill cut the line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0


def plain(content: Any) -> Any:
    """The same as a run's files may hold it: a number that is NaN or infinite is null, which every reader of JSON takes,
    and URLs are without their secrets."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, str):
        return without_secrets(content)
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode())


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder. Raises RunError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: cannot be read ({e}); restore it, or delete the run's folder to start over") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: holds {type(content).__name__}, expected an object; delete the run's folder")
    return content
