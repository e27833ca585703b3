"""What sharing a run between two processes costs. About seven minutes on 2 cores.

`ranks_script.py` runs all sides in turn in the same two processes, which talk by gloo. Each is a step of `curate train` as
users start it, with data, score table, scoring, choice, two optimizer steps and records, on CIFAR-10N that was decoded in the
first epochs; seconds are those of its metrics.jsonl, after the first steps.

- Two ranks, of one thread each, over one process with two threads, at the same batch size.
- Two ranks over a plain loop of both models in DistributedDataParallel that chooses nothing, by FLOPs a second: scoring is part
  of our FLOPs.
- "apart": each rank trains a run of its own on half of the batch at the same time. What two ranks take longer is what they
  say to each other, and waiting.
- Gathering scores, choosing, and moving chosen rows, at B = 20,480 and images of 224 pixels. Scores are made up; the rows are
  sent. The step of a ViT-L/14 beside it is arithmetic: 3 forward passes of 175 GFLOPs for each of 4,096 images, on two GPUs of
  989 TFLOP/s at 40 %. What one process does too, copying the chosen rows into a batch, stands beside it.

Goals: 0.9, 0.95, and at most 2 % of such a step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from curate.units import Report
from data import part_of_cifar10n, reference_with_weights
from gpu import VIT_L_MFU, vit_l_step
from measuring import Benchmark, Figure, curate, ratios
from ranks_script import BATCH_SIZE, CHOSEN, FILTER_RATIO, LANES, LARGE, STEPS, WARM_UP

ROUNDS = int(os.environ.get("CURATE_ROUNDS", "5"))
H100 = 989e12


def measure(work: Path, report: Report) -> list[Figure]:
    part_of_cifar10n(work, "part", LANES, report)
    reference_with_weights(work, "scorer", "small_resnet", channels=[12, 24, 48, 96], layers=[0, 1, 1])
    reference_with_weights(work, "learner", "small_resnet", channels=[24, 48, 96, 192], layers=[0, 1, 1])
    scoring = ("--dataset", "part", "--reference", "scorer", "--out", work / "scores")
    curate("score-reference", *scoring, "--", "--direct_running_mode=in_memory", "--direct_num_workers=1", cwd=work)
    out = work / "ranks.json"
    script = Path(__file__).with_name("ranks_script.py")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run([*torchrun, str(script), str(work), str(out), str(ROUNDS)], check=True)
    return figures_of(json.loads(out.read_text(encoding="utf-8")))


def figures_of(found: dict[str, Any]) -> list[Figure]:
    seconds, flops, large, messages = (found[name] for name in ("seconds", "flops", "large", "messages"))
    ours = [flops["ours"] / s for s in seconds["two ranks"]]
    plain = [flops["plain"] / s for s in seconds["plain loop"]]
    step = vit_l_step(LARGE, FILTER_RATIO) / (2 * H100 * VIT_L_MFU)
    parts = ("gather", "select", "exchange")
    return [
        Figure(
            name="two ranks over one process (examples/s)",
            samples=ratios(seconds["one process, two threads"], seconds["two ranks"]),
            goal=0.9,
        ),
        Figure(name="two ranks over a plain DDP loop, per FLOP", samples=ratios(ours, plain), goal=0.95),
        Figure(
            name=f"gather + select + exchange at B = {LARGE:,}, of a ViT-L/14 step (by arithmetic)",
            samples=tuple(100 * sum(one[part] for part in parts) / step for one in large),
            unit="%",
            goal=2.0,
            better="lower",
        ),
        *(
            Figure(name=f"{part} at B = {LARGE:,}", samples=tuple(1000 * one[part] for one in large), unit="ms")
            for part in parts
        ),
        Figure(
            name="copying a rank's chosen rows, as one process does",
            samples=tuple(1000 * one["copying"] for one in large),
            unit="ms",
        ),
        Figure(name="rows moved, of b", samples=tuple(100 * one["moved"] / CHOSEN for one in large), unit="%"),
        *(Figure(name=name, samples=tuple(1000 * s for s in of), unit="ms a step") for name, of in seconds.items()),
        Figure(name="the slower rank's step over a rank's step", samples=tuple(found["waiting"]), better="lower"),
        Figure(name="messages a step", samples=(found["talks"],)),
        Figure(name="FLOPs a step", samples=(flops["ours"],)),
        Figure(name="weights, both models", samples=(sum(found["weights"]),)),
        Figure(name="a small message", samples=(1000 * messages["small"],), unit="ms"),
        *(
            Figure(name=f"16 MB {told}", samples=(1000 * messages[kind],), unit="ms")
            for kind, told in (("exchange", "sent all to all"), ("sum", "added up"))
        ),
    ]


BENCHMARK = Benchmark(
    "ranks",
    "two ranks over one process >= 0.9; over a plain DDP loop >= 0.95 per FLOP; choosing together <= 2 % of a step",
    measure,
    {
        "learner": "small_resnet of 24 to 192 channels at 32 px",
        "online": "the same, half as wide",
        "batch_size": BATCH_SIZE,
        "filter_ratio": FILTER_RATIO,
        "steps_a_round": STEPS - WARM_UP,
        "backend": "gloo, one thread a rank",
    },
)
