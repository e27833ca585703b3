"""How long a save holds the step of a learner in shards: whole files, or torch.distributed.checkpoint. A minute on 2 cores.

Two ranks hold a ViT-S/16 (22 million weights) in shards on the CPU, with both of AdamW's moments. `saving_script.py` saves them
in turn as `curate train --fsdp` does (rank 0 gathers tensor by tensor and writes safetensors, synced, with checksums), by
torch.distributed.checkpoint (DCP), and by its asynchronous save, which holds the step only until the state is copied. A run
saves at most every 30 seconds, and so seldom that a fiftieth of the time goes into it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from curate.units import Report
from measuring import Benchmark, Figure

ROUNDS = int(os.environ.get("CURATE_ROUNDS", "5"))


def measure(work: Path, report: Report) -> list[Figure]:
    out = work / "saving.json"
    script = Path(__file__).with_name("saving_script.py")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run([*torchrun, str(script), str(work / "saved"), str(out), str(ROUNDS)], check=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    gigabytes = 12 * found["weights"] / 1e9
    return [
        Figure(
            name=f"{name}: {part}",
            samples=tuple(one[part] / gigabytes for one in rounds),
            unit="s a GB of state",
            better="lower",
        )
        for name, rounds in found["seconds"].items()
        for part in rounds[0]
    ]


BENCHMARK = Benchmark(
    "saving",
    "how long a save holds the step (no goal)",
    measure,
    {"learner": "vit_small_patch16_224 in shards of two ranks, float32, AdamW", "backend": "gloo"},
)
