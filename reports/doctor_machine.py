"""This machine: versions, devices and bf16, threads and limits, memory, disk."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from ..datasets.storage import filesystem, is_local
from ..errors import StorageError
from ..scoring.settings import Precision
from ..threads import CGROUP, cgroup_limit, cores
from ..units import counted
from .doctor_findings import Finding

MACHINE = "machine"
PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "apache-beam", "webdataset", "pyarrow", "duckdb")
LITTLE_DISK, SOME_DISK = 1 << 30, 10 << 30
LESS_MEMORY = "curate train --host-bytes 256MiB --cache-bytes 0 ..."
# By device: large enough to be limited by arithmetic, and on a CPU without bf16 done within a second.
SIDES, ROUNDS = {"cpu": 256, "cuda": 4096}, 5
# A smaller difference than this is noise.
FASTER = 1.2


def look_at_machine(scores: str) -> list[Finding]:
    """Findings on everything but data. Takes some seconds: it imports torch and multiplies matrices."""
    return [*_versions(), *_devices(), *_threads(), *_memory(), *_disks(scores)]


def _versions() -> Iterator[Finding]:
    try:
        stated = requires("curate") or []
    except PackageNotFoundError:  # run from a clone that is not installed
        stated = []
    least = {
        found[1].lower(): found[2] for line in stated if (found := re.match(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", line))
    }
    known = []
    for name in PACKAGES:
        wanted = least.get(name, "")
        line = f"python -m pip install '{name}{'>=' + wanted if wanted else ''}'"
        try:
            here = version(name)
        except PackageNotFoundError:
            yield Finding(MACHINE, "act", f"{name} is not installed", line)
            continue
        known.append(f"{name} {here}")
        if wanted and _numbers(here) < _numbers(wanted):
            yield Finding(MACHINE, "act", f"{name} is {here}, curate needs {wanted} or newer", line)
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding(MACHINE, "ok", f"{system}; {', '.join(known)}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def _devices() -> Iterator[Finding]:
    import torch

    from ..scoring.forward import best_device, best_precision

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            yield Finding(MACHINE, "ok", f"GPU {i}: {about.name}, {about.total_memory / 2**30:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield Finding(
            MACHINE,
            "act",
            f"there is an NVIDIA driver, but torch sees no GPU (it is {built})",
            "python -m torch.utils.collect_env",
        )
    else:
        yield Finding(
            MACHINE, "note", f"no GPU; torch computes on the CPU in {counted(torch.get_num_threads(), 'thread')}"
        )
    device = best_device()
    yield _precision(best_precision(device), bf16_speed(device))


def bf16_speed(device: Any) -> float:
    """How many times as fast as in float32 a matrix product is in bfloat16 here; the median of some rounds."""
    import torch

    seconds, side = {}, SIDES[device.type]
    for kind in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side, device=device).to(kind)
        taken = []
        for _ in range(ROUNDS + 2):
            started = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
        seconds[kind] = statistics.median(taken[2:])
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _precision(default: Precision, speed: float) -> Finding:
    """bf16 as measured, beside what curate would choose."""
    measured = f"bf16 is {speed:.2g} times as fast as fp32 in a matrix product; curate's default here is {default}"
    faster: Precision | None = "bf16" if speed > FASTER else "fp32" if speed < 1 / FASTER else None
    if faster is None or faster == default:
        return Finding(MACHINE, "ok", measured)
    line = f"curate score-reference --precision {faster} ..."
    return Finding(MACHINE, "note", f"{measured}, and {faster} is faster", line)


def _threads() -> Iterator[Finding]:
    used, limit, asked = cores(), cgroup_limit(), os.environ.get("OMP_NUM_THREADS", "")
    about = f"{used} of {os.cpu_count()} cores may be used"
    if limit is not None:
        about += f", by this container's limit of {limit:g}"
    if asked.isdigit() and int(asked) > used:
        told = f"{about}, but OMP_NUM_THREADS is {asked}: more threads only wait for each other"
        yield Finding(MACHINE, "act", told, f"export OMP_NUM_THREADS={used}")
    else:
        yield Finding(MACHINE, "ok", about + (f"; OMP_NUM_THREADS is {asked}" if asked else ""))


def memory_limit(root: Path = CGROUP) -> int | None:
    """Bytes that the container may use; None without a limit."""
    for place in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        try:
            text = place.read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < 1 << 60 else None
    return None


def _memory() -> Iterator[Finding]:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    limit = memory_limit()
    least = min(total, limit or total)
    about = f"{total / 2**30:.1f} GiB of memory" + (
        f", of which this container may use {least / 2**30:.1f}" if least < total else ""
    )
    # --host-bytes and --cache-bytes take up to 3 GiB by default, and torch with its libraries about 1.
    if least < 6 << 30:
        yield Finding(MACHINE, "note", f"{about}; a run takes up to 4 by default", LESS_MEMORY)
    else:
        yield Finding(MACHINE, "ok", about)


def _disks(scores: str) -> Iterator[Finding]:
    """The working folder, where runs are written, and the score tables' folder if it is local."""
    places = {str(Path.cwd())}
    try:
        if is_local(scores):
            places.add(_existing(Path(filesystem(scores)[1])))
    except StorageError:  # told by the look at stores
        pass
    seen = set()
    for place in sorted(places):
        usage, device = shutil.disk_usage(place), os.stat(place).st_dev
        if device in seen:
            continue
        seen.add(device)
        about = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB are free under {place}"
        level = "act" if usage.free < LITTLE_DISK else "note" if usage.free < SOME_DISK else "ok"
        yield Finding(MACHINE, level, about, "" if level == "ok" else f"du -xh --max-depth 2 {place} | sort -h | tail")  # type: ignore[arg-type]


def _existing(path: Path) -> str:
    return str(next(folder for folder in (path, *path.parents) if folder.exists()))
