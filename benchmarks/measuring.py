"""What every benchmark needs: figures with their spread, both sides in turn, and what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from curate.units import Report

PACKAGES = ("torch", "apache-beam", "timm", "webdataset", "torchvision", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured quantity. `goal` is a bound on the median, `None` where the figure only explains another one."""

    name: str
    samples: tuple[float, ...]
    unit: str = ""
    goal: float | None = None
    better: Literal["higher", "lower"] = "higher"

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.median >= self.goal if self.better == "higher" else self.median <= self.goal

    def to_dict(self) -> dict[str, Any]:
        spread = {"n": len(self.samples), "median": self.median, "min": min(self.samples), "max": max(self.samples)}
        return {**asdict(self), **spread, "met": self.met}


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's file offers as `BENCHMARK`: `measure(work, report)` makes its figures in an empty folder."""

    name: str
    goal: str
    measure: Callable[[Path, Report], list[Figure]]
    setting: dict[str, Any] = field(default_factory=dict)


def in_turn(rounds: int, report: Report, **sides: Callable[[], float]) -> dict[str, tuple[float, ...]]:
    """Measure every side once a round, the order turned around each time, so that a slow minute hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides) if i % 2 == 0 else reversed(sides):
            samples[name].append(sides[name]())
        shown = ", ".join(f"{name} {values[-1]:,.4g}" for name, values in samples.items())
        report(f"  round {i + 1}/{rounds}: {shown}")
    return {name: tuple(values) for name, values in samples.items()}


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    """Round by round, because both sides of a round met the same neighbours on the machine."""
    return tuple(a / b for a, b in zip(over, under, strict=True))


def seconds_a_step(metrics: str) -> float:
    """Of the text of a run's metrics.jsonl: from its first line, which ends the warm-up, to its last."""
    lines = [json.loads(line) for line in metrics.splitlines()]
    seconds: float = lines[-1]["seconds"]["total"] - lines[0]["seconds"]["total"]
    steps: int = lines[-1]["step"] - lines[0]["step"]
    return seconds / max(1, steps)


def curate(*arguments: object, cwd: Path, seconds: float | None = None) -> None:
    """The command line, as a user runs it. Its output is shown only where it fails. `seconds` is the most it may take."""
    done = subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"curate {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr}")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "curate", *map(str, arguments)]


def surroundings() -> dict[str, Any]:
    """Hardware and versions, without any name of the machine."""
    return {
        "hardware": {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)), "memory_gb": _memory_gb()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "load_average_before": [round(x, 2) for x in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return model + (" with AMX" if "amx_bf16" in flags else "")


def _memory_gb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
