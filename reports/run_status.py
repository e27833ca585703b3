"""`curate status` of a run folder: how far it is, how fast, and its quality so far. Reads only the run's files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..errors import RunError
from ..units import format_flops, percent
from .formats import check_format
from .status import ago

RATES = ("samples_per_second", "mfu", "data_share")
SPENT = ("learner_train", "online_score", "online_train")


@dataclass(frozen=True)
class RunStatus:
    """`step`, `spent` and `seconds` are of the newest line of metrics, or of the newest checkpoint where that is further: a run
    that was killed resumes there. They are 0 and empty before both. `loss` and `rates` are of the newest line. `quality` has
    the measures of every evaluation by step. `idle` is how many seconds ago the run last wrote either."""

    folder: str
    policy: str
    finished: bool
    step: int
    steps: int | None
    loss: float | None
    spent: float
    rates: dict[str, float | None]
    seconds: dict[str, float]
    quality: dict[int, dict[str, float]]
    idle: float | None


def is_run(path: str) -> bool:
    return Path(path, "config.json").is_file()


def run_status(path: str) -> RunStatus:
    """Raises RunError where the folder's config.json is damaged. What is not written yet is None or empty."""
    folder = Path(path)
    config = _document(folder / "config.json")
    if not config:
        raise RunError(f"{folder / 'config.json'}: is damaged; restore it, or delete the run's folder")
    if "policy" not in config:
        raise RunError(
            f"{path}: is no run: its config.json is another program's; give the folder of a run, such as runs/NAME"
        )
    summary, manifest = _document(folder / "summary.json"), _document(folder / "manifest.json")
    metrics = folder / "metrics.jsonl"
    lines = _lines(metrics)
    last: Mapping[str, Any] = next((line for line in reversed(lines) if "loss" in line), {})
    quality = {int(line["step"]): line["quality"] for line in lines if line.get("quality")}
    if summary.get("quality"):
        quality[int(summary["steps"])] = summary["quality"]
    saved, saved_at = _newest_checkpoint(folder)
    step, seconds, flops = int(last.get("step", 0)), last.get("seconds") or {}, last.get("flops") or {}
    if saved.get("step", 0) > step:
        step, seconds, flops = saved["step"], saved.get("seconds") or {}, saved.get("ledger") or {}
    seconds = summary.get("seconds") or seconds
    written = [saved_at] if saved_at else []
    written += [metrics.stat().st_mtime] if lines else []
    return RunStatus(
        folder=path,
        policy=str(config.get("policy")),
        finished=bool(summary),
        step=step,
        steps=summary.get("steps") or (manifest.get("began") or {}).get("steps") or config.get("steps"),
        loss=last.get("loss"),
        spent=sum(flops.get(line) or 0.0 for line in SPENT) + sum((last.get("flops_in_run") or {}).values()),
        rates={name: last.get(name) for name in RATES},
        seconds={stage: value for stage, value in seconds.items() if stage not in ("total", "wall")},
        quality=quality,
        idle=max(0.0, time.time() - max(written)) if written else None,
    )


def write_run_status(status: RunStatus, format: str = "table") -> None:
    """Print it for people, or as JSON. Raises SpecError for an unknown format."""
    check_format(format)
    if format == "json":
        sys.stdout.write(json.dumps(asdict(status), indent=2) + "\n")
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(status.folder)}[/bold]")
    of = f" of {status.steps:,} ({percent(status.step / status.steps)})" if status.steps else ""
    loss = "" if status.loss is None else f", loss {status.loss:.4g}"
    state = "finished" if status.finished else "not finished"
    console.print(
        f"{escape(status.policy)}, step {status.step:,}{of}, {format_flops(status.spent)} spent{loss}; {state}"
    )
    told = _rates(status.rates)
    if told:
        console.print(f"at the newest line: {told}")
    whole = sum(status.seconds.values())
    if whole > 0:
        stages = sorted(status.seconds.items(), key=lambda item: -item[1])
        console.print(f"{whole:,.1f} s: " + ", ".join(f"{stage} {percent(value / whole)}" for stage, value in stages))
    for step, measures in sorted(status.quality.items()):
        shown = ", ".join(f"{k} {v:.4f}" for k, v in measures.items() if not k.startswith("test_"))
        console.print(f"after step {step:,}: {shown}")
    if status.idle is not None and not status.finished:
        console.print(f"last wrote {ago(status.idle)} ago")


def _rates(rates: Mapping[str, float | None]) -> str:
    samples, mfu, share = (rates.get(name) for name in RATES)
    parts = [] if samples is None else [f"{samples:,.0f} examples/s trained"]
    parts += [] if mfu is None else [f"mfu {percent(mfu)}"]
    parts += [] if share is None else [f"{percent(share)} of the time spent waiting for data"]
    return ", ".join(parts)


def _newest_checkpoint(run: Path) -> tuple[dict[str, Any], float | None]:
    """The state of the newest checkpoint, and when it was written; empty and None where there is none."""
    for file in sorted((run / "checkpoints").glob("resume-*/state.json"), reverse=True):
        state = _document(file)
        if isinstance(state.get("step"), int):
            return state, file.stat().st_mtime
    return {}, None


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing, incomplete or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics that are whole."""
    found = []
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict) and isinstance(content.get("step"), int):
                found.append(content)
    except OSError:
        return []
    return found
