"""The most that an accelerator computes, from its maker's data sheet, and whether it computes the same bits every time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ModelError, first_line
from ..scoring.settings import Precision

# Dense FLOP/s of matrix products in (bf16, float32 without TF32), by the beginning of the device's name. The first that
# matches holds, so longer names stand before shorter ones.
PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA GB200": (2.5e15, 80e12),
    "NVIDIA B200": (2.25e15, 75e12),
    "NVIDIA GH200": (989e12, 67e12),
    "NVIDIA H200 NVL": (835e12, 60e12),
    "NVIDIA H200": (989e12, 67e12),
    "NVIDIA H100 PCIe": (756e12, 51e12),
    "NVIDIA H100 NVL": (835e12, 60e12),
    "NVIDIA H100": (989e12, 67e12),
    "NVIDIA A100": (312e12, 19.5e12),
    "NVIDIA L40S": (362e12, 91.6e12),
    "NVIDIA L4": (121e12, 30.3e12),
    "NVIDIA A10G": (70e12, 35e12),
    "NVIDIA A10": (125e12, 31.2e12),
    "NVIDIA GeForce RTX 4090": (165e12, 82.6e12),
    "NVIDIA GeForce RTX 3090": (71e12, 35.6e12),
}


def peak_flops(name: str, precision: Precision) -> float | None:
    """FLOP/s of the device of this name at this precision; None where it is not in the table."""
    for known, (bf16, fp32) in PEAKS.items():
        if re.match(rf"{re.escape(known)}\b", name):
            return bf16 if precision == "bf16" else fp32
    return None


def device_peak(device: torch.device, precision: Precision) -> float | None:
    """The same of a device of this machine; None for a CPU."""
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Within, a GPU computes by kernels alone that give the same bits every time. The setting is the process's.

    Raises ModelError where a model has an operator without such a kernel.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    settings = cudnn.deterministic, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # we read none
    try:
        yield
    except RuntimeError as e:
        if "deterministic" not in str(e):
            raise
        raise ModelError(f"--deterministic: {first_line(e)}; leave the option out") from e
    finally:
        torch.use_deterministic_algorithms(before)
        cudnn.deterministic, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = settings  # type: ignore[attr-defined]
