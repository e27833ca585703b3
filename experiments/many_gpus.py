"""What a step costs on 8, 64 and 512 GPUs, on paper: nobody ran it there. Checked against two ranks of a benchmark.

    python experiments/many_gpus.py benchmarks/results/DATE-ranks.json > experiments/results/DATE-many-gpus.json

A simulation of a step: each rank scores its rows of a super-batch and trains on its share of the choice, at a sustained FLOP/s
that varies from step to step; all wait for the slowest. The real code says who holds which rows and what moves, for made-up
scores. Messages take a latency for each hop and a time by their size; gradients are averaged in a ring, partly hidden behind
the backward pass. First the simulation is given what the benchmark measured on a CPU (compute apart, one message, bytes a
second), and its step is compared with the one that two ranks took there.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curate.scoring.selection import select
from curate.training.deal import deal, shares
from curate.training.division import Division
from curate.training.group import Group

STEPS, FILTER_RATIO = 20, 0.8
WAITING = "the slower rank's step over a rank's step"


@dataclass(frozen=True)
class Machine:
    """A device and its links. `spread` is the standard deviation of a device's seconds from step to step, as a share. A hop is
    the latency of one message: `host_hop` of those on the CPU, `messages` a step, `device_hop` of the others. `bandwidth` is
    bytes a second out of a device, `overlap` the share of the backward pass that hides messages."""

    flops: float
    spread: float
    host_hop: float
    device_hop: float
    bandwidth: float
    select_rows: float
    overlap: float
    messages: float


@dataclass(frozen=True)
class Work:
    """A run. FLOPs are of one example, `weights` those of both models, `row` the bytes of an example's pixels."""

    ranks: int
    b: int
    score: float
    train: float
    weights: float
    row: int

    @property
    def super_batch(self) -> int:
        return round(self.b / (1 - FILTER_RATIO))

    @property
    def flops(self) -> float:
        """Of a step, of all ranks."""
        return self.super_batch * self.score + self.b * self.train


# 989 TFLOP/s at 40 %; NVLink within a node, 400 Gbit/s a GPU between nodes, of both four fifths; latencies of NCCL and of TCP.
# One core draws the random numbers of the choice.
H100 = Machine(
    flops=0.4 * 989e12,
    spread=0.02,
    host_hop=50e-6,
    device_hop=10e-6,
    bandwidth=360e9,
    select_rows=15e6,
    overlap=0.8,
    messages=7,
)
NODE, BETWEEN_NODES = 8, 40e9
# A ViT-L/14 CLIP (175 GF a forward pass, 428 M weights) scored by a ViT-S/16 (9.2 GF, 40 M), as uint8 of 224 pixels.
VIT_L = Work(ranks=8, b=4096, score=9.2e9, train=3 * (175e9 + 9.2e9), weights=468e6, row=224 * 224 * 3)


def simulated(machine: Machine, work: Work, seed: int = 0) -> dict[str, float]:
    """Mean seconds of a step by part, and the share of b that moves."""
    chance = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    W, B, b = work.ranks, work.super_batch, work.b
    lanes = max(32, W)
    hops = math.log2(W)
    found: list[dict[str, float]] = []
    for step in range(STEPS):
        division = Division.of_step(Group(0, W), step, (B, lanes))
        index_b = select(torch.from_numpy(chance.gumbel(size=B)), b, sampler="topk", generator=generator)
        holder_b = division.holder_B[index_b.numpy()]
        trainer_b = deal(holder_b, W)
        moves = holder_b != trainer_b
        sent = np.bincount(holder_b[moves], minlength=W).max()
        received = np.bincount(trainer_b[moves], minlength=W).max()
        share = np.array(shares(np.bincount(holder_b, minlength=W).tolist()))

        def slowest(flops_W: np.ndarray) -> float:
            seconds = flops_W / machine.flops * (1 + machine.spread * chance.standard_normal(W))
            return float(seconds.max())

        training = slowest(share * work.train)
        averaging = 2 * (W - 1) / W * 4 * work.weights / machine.bandwidth + 2 * hops * machine.device_hop
        found.append(
            {
                "score": slowest(np.array(division.rows) * work.score),
                "gather": hops * machine.device_hop + 8 * B / machine.bandwidth,
                "select": B / machine.select_rows,
                "exchange": 2 * W * machine.device_hop + max(sent, received) * work.row / machine.bandwidth,
                "agree": machine.messages * hops * machine.host_hop,
                "train": training,
                "average": max(0.0, averaging - machine.overlap * training * 2 / 3),
                "moved": moves.sum() / b,
            }
        )
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}


def total(parts: dict[str, float]) -> float:
    return sum(seconds for name, seconds in parts.items() if name != "moved")


def check(result: dict[str, Any]) -> dict[str, Any]:
    """The step that two ranks took on a CPU, measured and foretold."""
    figures = {figure["name"]: figure for figure in result["figures"]}

    def of(name: str) -> float:
        return float(figures[name]["median"])

    apart, measured = of("two ranks apart") / 1000, of("two ranks") / 1000
    b = result["setting"]["batch_size"]
    flops = of("FLOPs a step")
    machine = Machine(
        flops=flops / 2 / apart,
        # The greater of two normal numbers lies 1 / sqrt(pi) standard deviations above their mean.
        spread=(of(WAITING) - 1) * math.sqrt(math.pi) if WAITING in figures else 0.0,
        host_hop=of("a small message") / 1000,
        device_hop=of("a small message") / 1000,
        bandwidth=2 * (1 << 24) / 2 / (of("16 MB added up") / 1000),
        select_rows=20_480 / (of("select at B = 20,480") / 1000),
        overlap=0.0,
        messages=of("messages a step"),
    )
    # All FLOPs as training: the seconds apart hold both.
    work = Work(ranks=2, b=b, score=0.0, train=flops / b, weights=of("weights, both models"), row=32 * 32 * 3 * 2)
    foretold = total(simulated(machine, work))
    return {"measured": measured, "foretold": foretold, "apart": apart, "foretold over measured": foretold / measured}


def on_paper(ranks: int, b: int) -> dict[str, Any]:
    work = replace(VIT_L, ranks=ranks, b=b)
    machine = H100 if ranks <= NODE else replace(H100, bandwidth=BETWEEN_NODES)
    parts = simulated(machine, work)
    seconds = total(parts)
    choosing = sum(parts[name] for name in ("gather", "select", "exchange", "agree"))
    return {
        **asdict(work),
        "B": work.super_batch,
        "milliseconds": {name: 1000 * value for name, value in parts.items() if name != "moved"},
        "step": seconds,
        "choosing, %": 100 * choosing / seconds,
        "moved, %": 100 * parts["moved"],
        "of ideal, %": 100 * work.flops / ranks / machine.flops / seconds,
    }


def main() -> None:
    torch.set_num_threads(1)
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    command = f"python experiments/many_gpus.py {sys.argv[1]}"
    lines = [on_paper(ranks, b) for ranks, b in ((8, 4096), (64, 4096), (64, 32_768), (512, 32_768))]
    print(
        json.dumps({"command": command, "check": check(result), "machine": asdict(H100), "on paper": lines}, indent=1)
    )


if __name__ == "__main__":
    main()
