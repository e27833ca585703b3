"""`make bench-gpu`: where a step's time goes on this GPU, in at most ten minutes. `--device cpu` runs it to its end in small.

    python benchmarks/gpu.py [--device cuda|cpu] [--seconds 540]

Images are random JPEGs, so nothing is downloaded. Measured are, those first that take little
- choosing: the choice of a joint policy at a large B, with float32 products in TF32 and without, over the time of a ViT-L/14 step
  by arithmetic at `VIT_L_MFU` of the device's peak;
- precision: how far losses in bf16 and TF32 lie from those in float32, and what scoring takes in each;
- copying: super-batches of pixels to the device, from each kind of memory, in turn with the work and beside it;
- decoding: images/s by threads and by processes;
- training: real runs of `curate train`, hard-learner (which scores the whole super-batch), the same scored ahead, and uniform:
  the share of the time by stage, `mfu`, images/s, what compiling took, whether the stages add up to a clock that stands beside
  the loop, what memory was foreseen over what was taken; the seconds for a FLOP over uniform's, and what scoring ahead gains;
- scoring: `curate score-reference` of the same images by the online model: images/s of the whole job, its start included.

No part is begun after `--seconds`; what is left out is said. After each part results/DATE-gpu-DEVICE-KIND.json is written, or
`--out FOLDER` in place of results/, so that a machine that is taken away keeps nothing back.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from gpu_copies import copying
from measuring import Benchmark, Figure, surroundings
from PIL import Image

UNIFORM, HARD = "uniform", "hard-learner"
GOALS = {"choosing": "a joint choice below 2 % of a ViT-L step"}
# So many images are different ones; so many shards are decoded.
DIFFERENT, DECODED_SHARDS = 1024, 8
SECONDS = 540.0  # what is under way when they are over still ends
# The share of a device's peak that training a ViT-L/14 is taken to reach; the joint choice that is wanted.
VIT_L_MFU, LARGE = 0.4, (32768, 6554)


def vit_l_step(B: int, filter_ratio: float = 0.8) -> float:
    """FLOPs of training ViT-L/14 (224 px, 175 GF a forward pass) on what is chosen of B."""
    return B * (1 - filter_ratio) * 3 * 175e9


@dataclass(frozen=True)
class Size:
    """What fits the device."""

    images: int
    side: int
    learner: dict[str, Any]
    online: dict[str, Any]
    batch_size: int
    steps: int
    joint: tuple[int, int]
    rounds: int


SIZES = {
    "cuda": Size(
        8192,
        256,
        {"architecture": "vit_base_patch16_224"},
        {"architecture": "vit_tiny_patch16_224"},
        256,
        60,
        LARGE,
        5,
    ),
    "cpu": Size(
        256, 48, {"architecture": "small_resnet_w16"}, {"architecture": "small_resnet_w8_plain"}, 32, 12, (1024, 205), 3
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(SIZES), default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument(
        "--out", type=Path, help="the folder of the results; benchmarks/results, and its table, by default"
    )
    asked = parser.parse_args()
    device = asked.device
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --device cpu runs the benchmark to its end in small")
    from rich.console import Console
    from run import save, show, write_readme

    console, about, began = Console(highlight=False), surroundings(), time.perf_counter()
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    about["hardware"]["device"] = name
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    size, figures, left_out = SIZES[device], defaultdict[str, list[Figure]](list), []
    setting = {"device": name, "learner": size.learner, "online": size.online, "batch_size": size.batch_size}
    command = f"python benchmarks/gpu.py --device {device} --seconds {asked.seconds:g}"
    with tempfile.TemporaryDirectory(prefix="curate-bench-") as folder:
        for kind, what, measure in parts(Path(folder), size, torch.device(device)):
            if time.perf_counter() - began > asked.seconds:
                left_out.append(what)
                continue
            console.print(f"{what} ({time.perf_counter() - began:.0f} s so far)")
            started = time.perf_counter()
            try:
                found = measure()
            except Exception as e:  # what the other parts found is kept
                console.print(f"{what} failed: {type(e).__name__}: {e}", markup=False)
                left_out.append(what)
                continue
            if not found:
                continue
            show(console, found)
            figures[kind] += found
            benchmark = Benchmark(f"gpu-{slug}-{kind}", GOALS.get(kind, "no goal"), lambda *_: [], setting)
            save(benchmark, about, figures[kind], time.perf_counter() - started, command, asked.out)
            if not asked.out:
                write_readme()
    console.print(f"{time.perf_counter() - began:.0f} s; left out: {', '.join(left_out) or 'nothing'}")


def parts(work: Path, size: Size, device: Any) -> Iterator[tuple[str, str, Callable[[], list[Figure]]]]:
    """What is measured: its kind, its name, and how. What takes little time comes first."""
    yield "choosing", "choosing jointly", lambda: joint_choice(size, device)
    yield "precision", "precision", lambda: precisions(size, device)
    yield "copying", "copying to the device", lambda: copying(size.rounds, device)
    yield "images", "writing images", lambda: write_images(work, size)
    yield "decoding", "decoding", lambda: decoding(work, size)
    runs: dict[str, Run] = {}
    for name, policy, ahead in ((HARD, HARD, 0), (f"{HARD}, scored 2 ahead", HARD, 2), (UNIFORM, UNIFORM, 0)):
        yield "training", f"training, {name}", partial(train_stages, work, size, name, policy, ahead, runs)
    yield "scoring", "scoring offline", lambda: score_offline(work, size)


def write_images(work: Path, size: Size) -> list[Figure]:
    """Shards of 256 smooth random JPEGs, some of them alike, and a curate.toml."""
    from curate.datasets.preparers.writer import write_shards

    random = np.random.default_rng(0)

    def jpeg() -> bytes:
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((size.side, size.side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        return file.getvalue()

    different = [jpeg() for _ in range(min(size.images, DIFFERENT))]

    def image(i: int) -> dict[str, Any]:
        return {"__key__": f"{i:06d}", "jpg": different[i % len(different)], "cls": str(i % 10).encode()}

    write_shards(work / "data", map(image, range(size.images)), per_shard=256)
    lines = [f'[datasets.d]\ntrain = "data/{{00000..{size.images // 256 - 1:05d}}}.tar"\nimage = "jpg"\nclasses = 10']
    for name, entry in (("learner", size.learner), ("online", size.online)):
        lines.append(f"[models.{name}]\narchitecture = {json.dumps(entry['architecture'])}")
    (work / "curate.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return []


def decoding(work: Path, size: Size) -> list[Figure]:
    """Images/s of a learner's view, by threads and by processes, as many as a run has by default among them."""
    from curate.datasets.decoders import Decoders, default_processes
    from curate.datasets.decoding import Geometry
    from curate.datasets.readers import Example, read_shard
    from curate.datasets.shards import list_shards
    from curate.datasets.spec import find_dataset, load_config

    spec = find_dataset("d", load_config(work / "curate.toml"))
    shards = list_shards(spec)[:DECODED_SHARDS]
    examples = [one for shard in shards for one in read_shard(spec, shard) if isinstance(one, Example)]
    view = Geometry(size=size.side * 7 // 8)
    figures = []
    for processes in sorted({0, 8 if size.joint == LARGE else 1, default_processes([view])}):
        decoders = Decoders(processes, [view])
        decoders.look(examples, view)  # processes start
        rates = []
        for _ in range(size.rounds):
            began = time.perf_counter()
            decoders.look(examples, view)
            rates.append(len(examples) / (time.perf_counter() - began))
        who = f"{processes} processes" if processes else "threads"
        figures.append(Figure(name=f"decoding by {who}", samples=tuple(rates), unit="images/s"))
    return figures


@dataclass(frozen=True)
class Run:
    """What later runs are compared with."""

    seconds_per_flop: float
    images_per_second: tuple[float, ...]


def train_stages(work: Path, size: Size, run_name: str, policy: str, ahead: int, runs: dict[str, Run]) -> list[Figure]:
    """One run, noted under its name, and how it compares with those before it."""
    import torch
    from curate.datasets.spec import load_config
    from curate.training import RunOptions, loop, run, train

    walls = []

    def timed(job: loop.TrainingJob, after_step: Callable[[int], None] | None = None) -> int:
        began = time.perf_counter()
        done = loop.train_loop(job, after_step)
        walls.append(time.perf_counter() - began)
        return done

    options = RunOptions.of(
        dataset="d",
        learner="learner",
        online=None if policy == UNIFORM else "online",
        policy=policy,
        filter_ratio=0.8,
        score_ahead=ahead,
        batch_size=size.batch_size,
        steps=size.steps,
        log_every=max(1, size.steps // 6),
        cache_bytes=0,  # a large data set is decoded anew in every epoch
        out=str(work / "runs"),
        name=f"{policy}-{ahead}",
    )
    told: list[str] = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with mock.patch.object(run, "train_loop", timed):
        summary = train(options, config=load_config(work / "curate.toml"), report=told.append)
    seconds = {k: v for k, v in summary["seconds"].items() if k != "wall"}
    whole = seconds.pop("total")
    compiling = seconds.pop("compile", 0.0)
    text = (work / "runs" / str(options.records.name) / "metrics.jsonl").read_text(encoding="utf-8")
    first, *lines = [json.loads(line) for line in text.splitlines()]  # the first one holds the warm-up
    last = lines[-1]
    training = sum(
        last["seconds"][stage] - first["seconds"].get(stage, 0.0) for stage in seconds if stage != "evaluate"
    )
    flops = sum(last["flops"].values()) - sum(first["flops"].values())
    runs[run_name] = Run(training / flops, _values(lines, "samples_per_second"))
    figures = [Figure(name=f"{run_name}: stages over the wall clock", samples=(100 * whole / walls[0],), unit="%")]
    figures += [
        Figure(name=f"{run_name}: {stage}", samples=(100 * value / (whole - compiling),), unit="%")
        for stage, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    figures += [
        Figure(name=f"{run_name}: compiling", samples=(compiling,), unit="s", better="lower"),
        Figure(name=f"{run_name}: images trained", samples=runs[run_name].images_per_second, unit="a second"),
    ]
    if run_name == UNIFORM:
        figures += [
            Figure(
                name=f"{other}: seconds for a FLOP over uniform's",
                samples=(run.seconds_per_flop / runs[UNIFORM].seconds_per_flop,),
                better="lower",
            )
            for other, run in runs.items()
            if other != UNIFORM
        ]
    if ahead and policy in runs:
        gained = statistics.median(runs[run_name].images_per_second) / statistics.median(runs[policy].images_per_second)
        figures.append(Figure(name=f"{run_name}: images a second over those of scoring in turn", samples=(gained,)))
    if last["mfu"] is not None:
        figures.append(Figure(name=f"{run_name}: mfu", samples=tuple(100 * x for x in _values(lines, "mfu")), unit="%"))
    foreseen = next((re.match(r"memory: about ([\d.]+) GB", line) for line in told if "memory: about" in line), None)
    if foreseen and torch.cuda.is_available():
        ratio = float(foreseen[1]) * 1e9 / torch.cuda.max_memory_allocated()
        figures.append(Figure(name=f"{run_name}: memory foreseen over taken", samples=(ratio,)))
    return figures


def score_offline(work: Path, size: Size) -> list[Figure]:
    from measuring import curate

    weights = work / "runs" / "hard-learner-0" / "checkpoints" / "online.safetensors"
    (work / "curate.toml").open("a", encoding="utf-8").write(
        f"[models.scorer]\narchitecture = {json.dumps(size.online['architecture'])}\nweights = {json.dumps(str(weights))}\n"
    )
    began = time.perf_counter()
    curate("score-reference", "--dataset", "d", "--reference", "scorer", "--out", "scores", cwd=work, seconds=120)
    rate = size.images / (time.perf_counter() - began)
    return [Figure(name="score-reference, start included", samples=(rate,), unit="images/s")]


def _values(lines: list[dict[str, Any]], name: str) -> tuple[float, ...]:
    return tuple(line[name] for line in lines if line[name] is not None)


def joint_choice(size: Size, device: Any) -> list[Figure]:
    """Choosing b of B by two models' embeddings, which are random unit vectors."""
    import torch
    from curate.scoring.forward import float32_products
    from curate.scoring.joint import select_jointly, selection_flops
    from curate.scoring.losses import Pairs
    from curate.scoring.settings import Precision
    from curate.training.hardware import device_peak

    B, b = size.joint
    width, peak = 512, device_peak(device, "bf16")
    generator = torch.Generator().manual_seed(0)

    def pairs() -> Pairs:
        image, text = torch.nn.functional.normalize(torch.randn(2, B, width, generator=generator), dim=-1).to(device)
        return Pairs(image, text, 20.0, -5.0)

    online, reference = pairs(), pairs()
    figures = []
    for loss in ("sigmoid", "softmax"):
        share = 100 * selection_flops(*LARGE, [width, width], loss) / vit_l_step(LARGE[0])
        name = f"{loss} {LARGE[1]:,} of {LARGE[0]:,}: FLOPs over a ViT-L step's"
        figures.append(Figure(name=name, samples=(share,), unit="%", goal=2, better="lower"))
        # Only a GPU has TF32.
        ways: tuple[tuple[str, Precision], ...] = (("float32", "fp32"), ("TF32", "bf16"))
        for products, precision in ways[: 2 if device.type == "cuda" else 1]:
            with float32_products(device, precision):
                taken = tuple(
                    _timed(device, partial(select_jointly, online, reference, b, loss=loss)) for _ in range(size.rounds)
                )
            name = f"{loss} {b:,} of {B:,}, {products}"
            figures.append(Figure(name=name, samples=taken, unit="s", better="lower"))
            if peak:
                over = tuple(100 * t / (vit_l_step(B) / (peak * VIT_L_MFU)) for t in taken)
                name = f"{name}: over a ViT-L step at {VIT_L_MFU:.0%} mfu"
                figures.append(Figure(name=name, samples=over, unit="%", goal=2, better="lower"))
    return figures


def precisions(size: Size, device: Any) -> list[Figure]:
    """Losses and seconds of the online model on random images, by precision."""
    import torch
    from curate.scoring.forward import float32_products, score_batch
    from curate.scoring.loading import load_model
    from curate.scoring.models import ModelSpec
    from curate.scoring.settings import Precision

    spec = ModelSpec(name="online", task="classification", num_classes=10, **size.online)
    model = load_model(spec, seed=0).to(device)
    side, count = model.geometry.size, size.batch_size
    pixels = torch.randint(
        0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    pixels, targets = pixels.to(device), (torch.arange(count) % 10).to(device)
    losses, figures = {}, []
    # What lies outside autocast is in TF32 at bf16; "tf32" has no autocast at all.
    ways: tuple[tuple[str, Precision, Precision], ...] = (
        ("fp32", "fp32", "fp32"),
        ("bf16", "bf16", "bf16"),
        ("tf32", "bf16", "fp32"),
    )
    for name, products, precision in ways[: 3 if device.type == "cuda" else 2]:
        with float32_products(device, products):
            losses[name] = score_batch(model, pixels, targets, precision=precision).loss.float().cpu()
            taken = [
                _timed(device, partial(score_batch, model, pixels, targets, precision=precision))
                for _ in range(size.rounds)
            ]
        rates = tuple(count / t for t in taken)
        figures.append(Figure(name=f"scoring in {name}", samples=rates, unit="images/s"))
        if name != "fp32":
            apart = (losses[name] - losses["fp32"]).abs()
            figures.append(
                Figure(name=f"{name} loss from fp32's, mean", samples=(float(apart.mean()),), better="lower")
            )
            figures.append(Figure(name=f"{name} loss from fp32's, most", samples=(float(apart.max()),), better="lower"))
    return figures


def _timed(device: Any, work: Callable[[], Any]) -> float:
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
