"""The data path of a step: what a super-batch costs before anything trains. About ten minutes on 2 cores.

JPEGs of 256 to 500 px a side, scored at 112 px, trained on at 224 px, four of five dropped (f = 0.8). The images are
real: random crops, at random scales, of the two photographs that scikit-learn has (`load_sample_images`), at quality 90.
No model runs: scores are random, so that the loader alone is measured. Every side gives b examples at 224 px a step.

- ours: all B at 112 px with `reduced_jpeg = "close"`, the b chosen at 224 px
- all views of all: the same stream where nothing says what the scorer reads: all B at 112 and at 224 px, as before 0.2
- all at full size: all B at 224 px alone, as if the scorer saw what the learner sees
- DataLoader, webdataset, SPDL (where it is installed: pip install spdl-core): two workers, each JPEG decoded once, in full,
  and made both sizes by the same functions as ours

Goals: 2.5 times all B at full size, 1.2 times each loader, and 4 times where a policy chooses without pixels. The share of
a step that the main thread spends on data is measured while a ResNet-18 trains. Where others use the cores too, compare
the CPU seconds: they are those of all threads and worker processes, per super-batch. The first goal is out of reach
on a CPU, since all bits of a JPEG have to be read whatever its size. Of 160 such images (38 kB on average), CPU ms an image:

    decoded in full 0.95, resized to 224 px and the rest 1.19: 2.14
    decoded at a half or a quarter 0.72 (at an eighth, too coarse for 112 px, 0.52), resized to 112 px 0.30

So if resizing to 112 px and all reading and choosing took no time at all, ours would take 0.72 + 2.14 / 5 = 1.15 ms: 1.9 times
"all at full size". The faster the resizing to 224 px gets, the lower this bound is.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from curate.datasets.decoding import Geometry, _fit, open_image
from curate.datasets.spec import DatasetSpec, spec_from_table
from curate.scoring.losses import Losses
from curate.scoring.selector import Selector
from curate.training.sub import SubBatches
from curate.training.superbatch import SuperBatches
from curate.training.timing import DATA, Stages
from curate.units import Report
from measuring import Benchmark, Figure, in_turn, ratios
from PIL import Image
from sklearn.datasets import load_sample_images

SHARDS, PER_SHARD = 12, 64
B, b = 160, 32
# The first super-batch of each worker is there at the same time: they are not counted.
WORKERS = 2
ROUNDS, STEPS = 5, 2 * WORKERS
SMALL, CLOSE, FULL = Geometry(size=112), Geometry(size=112, reduced_jpeg="close"), Geometry(size=224)


class Scores:
    """Random scores. `views` are those that it would have read; without them it may read all."""

    def __init__(self, *views: str) -> None:
        if views != ("all",):
            self.views = views
        self._generator = torch.Generator().manual_seed(0)

    def score(self, batch: Any) -> Losses:
        losses_B = torch.rand(len(batch), generator=self._generator)
        return Losses(online_B=losses_B, reference_B=losses_B)


def measure(work: Path, report: Report) -> list[Figure]:
    spec = photographs(work / "photographs", report)
    paths = sorted(str(path) for path in (work / "photographs").glob("*.tar"))
    two = {"learner": FULL, "online": CLOSE}
    small = {**two, "online": SMALL}
    opened: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(spec, "hard-learner", two, Scores("online")),
        "without_reduction": lambda: ours(spec, "hard-learner", small, Scores("online")),
        "all_views": lambda: ours(spec, "hard-learner", small, Scores("all")),
        "all_full": lambda: ours(spec, "hard-learner", {"learner": FULL}, Scores("all")),
        "easy": lambda: ours(spec, "easy-reference", {"learner": FULL}, Scores()),
        "dataloader": lambda: torch_loader(paths),
        "webdataset": lambda: web_loader(paths),
    }
    if find_spec("spdl") is not None:
        opened["spdl"] = lambda: spdl_loader(paths)
    spent: dict[str, list[float]] = {name: [] for name in opened}
    found = in_turn(ROUNDS, report, **{name: measured(opened[name], spent[name]) for name in opened})
    shares = data_shares(spec, two)

    def times(what: str, over: str, under: str, goal: float | None = None) -> list[Figure]:
        return [
            Figure(name=what, samples=ratios(found[over], found[under]), goal=goal),
            Figure(name=f"{what}, by CPU seconds", samples=ratios(spent[under], spent[over])),
        ]

    return [
        *times("ours over all at full size", "ours", "all_full", 2.5),
        *times("ours over all views of all", "ours", "all_views"),
        *times("ours, JPEGs not reduced, over all views of all", "without_reduction", "all_views"),
        *times("easy-reference over all at full size", "easy", "all_full", 4.0),
        *times("ours over torch's DataLoader", "ours", "dataloader", 1.2),
        *times("ours over webdataset's loader", "ours", "webdataset", 1.2),
        *(times("ours over SPDL", "ours", "spdl", 1.2) if "spdl" in found else ()),
        Figure(name="main thread's share of a step", samples=shares, unit="%", goal=3.0, better="lower"),
        *(Figure(name=name, samples=samples, unit="super-batches/s") for name, samples in found.items()),
        *(Figure(name=name, samples=tuple(samples), unit="CPU s a super-batch") for name, samples in spent.items()),
    ]


def photographs(folder: Path, report: Report) -> DatasetSpec:
    """Tars of random crops of two photographs."""
    if not folder.exists():
        report(f"  cutting {SHARDS * PER_SHARD:,} images out of photographs")
        folder.mkdir(parents=True)
        photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
        generator = np.random.default_rng(0)
        for shard in range(SHARDS):
            with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
                for i in range(PER_SHARD):
                    _add(tar, f"{i:04d}.jpg", jpeg(photos[i % 2], generator))
                    _add(tar, f"{i:04d}.cls", b"1")
    return spec_from_table("photographs", {"train": f"{folder}/*.tar", "task": "classification", "classes": 10})


def jpeg(photo: Image.Image, generator: np.random.Generator) -> bytes:
    width, height = (int(side) for side in generator.integers(256, (501, 428)))
    scale = generator.uniform(max(width / photo.width, height / photo.height), 1.0)
    wide, high = int(width / scale), int(height / scale)
    left, top = (int(generator.integers(0, most + 1)) for most in (photo.width - wide, photo.height - high))
    cut = photo.crop((left, top, left + wide, top + high)).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    cut.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def ours(spec: DatasetSpec, policy: str, views: dict[str, Geometry], scores: Scores) -> Iterator[Iterator[Any]]:
    subs = stream(spec, policy, views, scores)
    try:
        yield iter(subs)
    finally:
        subs.close()


def stream(spec: DatasetSpec, policy: str, views: dict[str, Geometry], scores: Scores, **options: Any) -> SubBatches:
    # Nothing decoded is kept, and the shards are read again: as it is with more data than memory.
    batches = SuperBatches(spec, B, views=views, cache_bytes=0, host_bytes=24 << 20, lanes=4)
    return SubBatches(batches, Selector(policy, b), scorer=scores, **options)


def measured(opened: Callable[[], Any], spent: list[float]) -> Callable[[], float]:
    """A side of the benchmark: super-batches/s after the first ones. Adds the CPU seconds of each to `spent`."""

    def rate() -> float:
        with opened() as batches:
            for _ in islice(batches, WORKERS):
                pass
            cpu, started = cpu_seconds(), time.perf_counter()
            for _ in islice(batches, STEPS):
                pass
            spent.append((cpu_seconds() - cpu) / STEPS)
            return STEPS / (time.perf_counter() - started)

    return rate


def cpu_seconds() -> float:
    """Of this process and its worker processes."""
    ticks = 0
    for worker in multiprocessing.active_children():
        about = Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(about[11]) + int(about[12])  # in user mode and in the kernel
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def both_sizes(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    image = open_image(data)
    return _fit(image, SMALL, image.size), _fit(image, FULL, image.size)


def jpegs(paths: list[str]) -> Iterator[bytes]:
    """The images of these tars, again and again, as one writes it with tarfile."""
    for path in cycle(paths):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield file.read()


class Tars(torch.utils.data.IterableDataset[tuple[np.ndarray, np.ndarray]]):
    """Every worker its tars."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        return map(both_sizes, jpegs(self.paths[info.id :: info.num_workers]))


@contextmanager
def torch_loader(paths: list[str]) -> Iterator[Iterator[Any]]:
    yield iter(torch.utils.data.DataLoader(Tars(paths), batch_size=B, num_workers=WORKERS))


@contextmanager
def web_loader(paths: list[str]) -> Iterator[Iterator[Any]]:
    source = wds.WebDataset(paths, shardshuffle=len(paths)).repeat().to_tuple("jpg").map_tuple(both_sizes)
    yield iter(wds.WebLoader(source.map(lambda row: row[0]), batch_size=B, num_workers=WORKERS))


@contextmanager
def spdl_loader(paths: list[str]) -> Iterator[Iterator[Any]]:
    from spdl.pipeline import PipelineBuilder

    def collated(rows: list[tuple[np.ndarray, np.ndarray]]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.stack(sizes)) for sizes in zip(*rows, strict=True)]

    builder = PipelineBuilder().add_source(jpegs(paths)).pipe(both_sizes, concurrency=WORKERS)
    pipeline = builder.aggregate(B).pipe(collated).add_sink(2).build(num_threads=WORKERS)
    with pipeline.auto_stop():
        yield iter(pipeline)


def data_shares(spec: DatasetSpec, views: dict[str, Geometry]) -> tuple[float, ...]:
    """Per cent of each step that the main thread waits for data and decodes what was chosen, while a ResNet-18 trains."""
    import timm

    model = timm.create_model("resnet18", num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    timing = Stages()
    subs = iter(stream(spec, "hard-learner", views, Scores("online"), timing=timing))
    shares: list[float] = []
    with timing.running():
        for step in range(ROUNDS + 1):
            before = timing.state_dict()
            sub = next(subs)
            with timing("train"):
                pixels = sub.views["learner"].permute(0, 3, 1, 2).float() / 255
                assert isinstance(sub.targets, torch.Tensor)
                torch.nn.functional.cross_entropy(model(pixels), sub.targets).backward()
                optimizer.step()
                optimizer.zero_grad()
            passed = {stage: seconds - before.get(stage, 0.0) for stage, seconds in timing.state_dict().items()}
            if step:  # the first waits for everything
                shares.append(100 * sum(passed.get(stage, 0.0) for stage in DATA) / sum(passed.values()))
    return tuple(shares)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


BENCHMARK = Benchmark(
    "data_path",
    "a step's data costs less than decoding all B in full (2.5 times; 4 without pixels), and than other loaders (1.2 times)",
    measure,
    {
        "images": f"{SHARDS * PER_SHARD} JPEGs of 256 to 500 px",
        "B": B,
        "b": b,
        "scored at": 112,
        "trained at": 224,
        "spdl-core": version("spdl-core") if find_spec("spdl") is not None else "not installed",
    },
)
