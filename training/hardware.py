"""The most that an accelerator computes, from its maker's data sheet."""

from __future__ import annotations

import re

import torch

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
