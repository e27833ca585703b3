"""What a run writes while it goes: metrics, selections, the log. Cut back to the checkpoint when it resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.writing import whole_file, write_errors, write_whole
from ..errors import RunError

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


class RunRecords:
    """The files of a run folder that grow. Steps count from 1; a file of selections never spans a checkpoint."""

    def __init__(self, run: Path, echo: Callable[[str], None]) -> None:
        self.run = run
        self._echo = echo
        self._selections: list[pa.RecordBatch] = []
        self._rows = 0
        (run / "selections").mkdir(parents=True, exist_ok=True)

    def cut_after(self, step: int) -> None:
        """Forget what was written after `step`, where a resumed run goes on."""
        metrics = self.run / "metrics.jsonl"
        if metrics.exists():
            lines = [line for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_whole(metrics, "".join(f"{line}\n" for line in kept).encode())
        for file in (self.run / "selections").glob("*.parquet"):
            if int(file.stem.split("-")[1]) > step:
                file.unlink()

    def metric(self, values: dict[str, Any]) -> None:
        self._append("metrics.jsonl", json.dumps(values))

    def log(self, text: str) -> None:
        """A line for people: to the terminal, and to log.txt with the time."""
        self._echo(text)
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def _append(self, name: str, line: str) -> None:
        path = self.run / name
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def selection(
        self,
        step: int,
        shards: list[str],
        keys: list[str],
        online_loss: np.ndarray | None,
        reference_loss: np.ndarray | None,
        score: np.ndarray,
        selected: np.ndarray,
    ) -> None:
        """The whole super-batch of one step; arrays [B], NaN or None where the policy has no such loss."""
        nothing = np.full(len(keys), np.nan, dtype=np.float32)
        columns = [
            np.full(len(keys), step, dtype=np.int32),
            shards,
            keys,
            pa.array(nothing if online_loss is None else online_loss, from_pandas=True),
            pa.array(nothing if reference_loss is None else reference_loss, from_pandas=True),
            score,
            selected,
        ]
        self._selections.append(pa.record_batch(columns, schema=SELECTION_SCHEMA))
        self._rows += len(keys)
        if self._rows >= ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write the selections held so far as one file, named by its first and last step."""
        if not self._selections:
            return
        table = pa.Table.from_batches(self._selections)
        first, last = table["step"][0].as_py(), table["step"][-1].as_py()
        path = self.run / "selections" / f"{first:09d}-{last:09d}.parquet"
        with whole_file(path) as partial:
            pq.write_table(table, partial, compression="zstd")
        self._selections, self._rows = [], 0


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder. Raises RunError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: cannot be read ({e}); restore it, or delete the run's folder to start over") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: holds {type(content).__name__}, expected an object; delete the run's folder")
    return content
