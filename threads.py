"""How many cores this process may use, and how the threads of torch's operators wait for each other."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """The cores that this process may use: at least 1, by its affinity and by the limit of its container (cgroup).

    Processes that torchrun started on this machine for one run have equal shares of them.
    """
    sharing = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, _cores() // max(1, int(sharing) if sharing.isdigit() else 1))


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cgroup_limit()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def cgroup_limit(root: Path = CGROUP) -> float | None:
    """The CPUs that a container's quota grants, such as 1.5; None where there is no quota. Reads cgroup 2 and 1."""
    for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (root / quota_file).read_text(encoding="ascii").split()
            if period_file is not None:
                words += (root / period_file).read_text(encoding="ascii").split()
            quota, period = words
            return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how OpenMP's threads run, for this process and its children; call it before torch is imported.

    A waiting OpenMP thread spins on its core. Where another process needs that core, every operator of a small model waits
    for the spinning to end: beside two busy processes on two cores, 300 steps of a tiny ResNet took 60 s. With threads that
    sleep they took 7 s; on the quiet machine 3.0 s spinning, 3.4 s sleeping. How busy the machine will be is not known at
    the start, so threads sleep. OpenMP does not know a container's limit of CPUs and would start a thread per core of the
    machine. What the user has set stays.
    """
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    limit = cgroup_limit()
    if limit is not None and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(cores())
