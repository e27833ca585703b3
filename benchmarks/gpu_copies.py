"""Part of `gpu.py`: what copying super-batches to the GPU takes, in turn with the work and beside it, and by kind of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from measuring import Figure, in_turn, ratios

# Super-batches of this many images in a step; products that take about as long as the copy.
IMAGES, SIDE, STEPS, WIDTH = 1280, 224, 20, 8192


def copying(rounds: int, device: Any) -> list[Figure]:
    """Nothing on a CPU, where nothing is copied."""
    if device.type != "cuda":
        return []
    import torch
    from curate.datasets.slabs import Slabs
    from curate.training.batch import SuperBatch
    from curate.training.copies import Copies, Pinned

    slabs = Slabs(Pinned(torch.cuda.current_device()))
    shape = (IMAGES, SIDE, SIDE, 3)
    kinds = {
        "shared and pinned": torch.from_numpy(slabs.take(shape)[0]),
        "pinned by torch": torch.empty(shape, dtype=torch.uint8, pin_memory=True),
        "not pinned": torch.empty(shape, dtype=torch.uint8),
    }
    assert kinds["shared and pinned"].is_pinned(), "cudaHostRegister failed"

    def seconds(work: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began

    def copy(pixels: Any) -> float:
        size: int = pixels.nbytes
        return size / seconds(lambda: pixels.to(device, non_blocking=True)) / 1e9

    for pixels in kinds.values():
        copy(pixels)  # the first one asks the driver for memory
    rates = in_turn(rounds, print, **{name: lambda p=pixels: copy(p) for name, pixels in kinds.items()})

    names = [str(i) for i in range(IMAGES)]
    batches = [SuperBatch(names, names, {"image": kinds["shared and pinned"]}, torch.zeros(IMAGES)) for _ in range(2)]
    factor = torch.randn(WIDTH, WIDTH, device=device, dtype=torch.bfloat16)
    one_copy = kinds["shared and pinned"].nbytes / rates["shared and pinned"][0] / 1e9
    products = max(1, round(one_copy / seconds(lambda: factor @ factor)))

    def step(images: Any) -> None:
        for _ in range(products):
            factor @ factor
        images.sum()

    def in_order() -> float:
        def steps() -> None:
            for i in range(STEPS):
                step(batches[i % 2].to(device).views["image"])

        return seconds(steps) / STEPS

    def ahead() -> float:
        copies = Copies(device)

        def steps() -> None:
            for i in range(STEPS):
                here = copies.arrived(batches[i % 2])
                copies.begin(batches[(i + 1) % 2])
                step(here.views["image"])

        return seconds(steps) / STEPS

    in_order(), ahead()
    found = in_turn(rounds, print, **{"in turn": in_order, "ahead": ahead})
    return [
        *(Figure(name=f"copying, {name}", samples=samples, unit="GB/s") for name, samples in rates.items()),
        *(Figure(name=f"step, copied {how}", samples=s, unit="s", better="lower") for how, s in found.items()),
        Figure(name="step copied in turn over copied ahead", samples=ratios(found["in turn"], found["ahead"])),
    ]
