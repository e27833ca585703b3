"""Models: their specification and the built module; and the protocol of a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import nn

from ..datasets.batches import DecodedBatch
from ..datasets.decoding import Geometry
from ..datasets.readers import Example
from ..datasets.spec import DatasetSpec
from ..datasets.targets import Target
from ..lazy import lazily
from .preprocessing import Preprocessing
from .ranks import ALONE, Ranks
from .settings import Precision, Reduction

# ITU-R 601: how bright people see red, green and blue.
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to build a model again; JSON-able. `weights` says where its weights come from ("" is random),
    `coarse` how it scores (see coarse.py)."""

    name: str
    task: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    open_clip_config: dict[str, Any] | None = None
    num_classes: int = 0
    weights: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    coarse: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scored:
    """A model's outputs for B examples: `loss` [B] always; the others depend on the task. All on the model's device."""

    loss: torch.Tensor
    predicted: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    image_embedding: torch.Tensor | None = None
    text_embedding: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class EvaluationFlops:
    """FLOPs of scoring an `example`; of a model of pairs those of a `caption` alone, and how wide embeddings are."""

    example: float
    caption: float = 0.0
    width: int = 0

    def of(self, quality: Mapping[str, float], dataset: DatasetSpec, ranks: int = 1) -> float:
        """What it took to measure this quality. Every rank compares all embeddings, and embeds all classes."""
        n = quality["test_examples"]
        images, captions = quality.get("test_images", n), quality.get("test_captions", n)
        found = self.example * n + self.caption * (captions - n) + ranks * 4 * images * captions * self.width
        if "zero_shot_top1" in quality:
            labelled = quality.get("zero_shot_examples", n)
            found += labelled * (self.example - self.caption + 2 * self.width * len(dataset.classes))
            found += ranks * self.caption * len(dataset.classes) * len(dataset.templates)
        return found


class ShardScorer(Protocol):
    """Scores one shard, batch by batch. `flops` is the cost so far.

    Each batch is prepared, in a thread that reads ahead, before it is added; both happen in the order of the shard.
    """

    flops: float

    def prepare(self, batch: DecodedBatch) -> None: ...

    def add(self, batch: DecodedBatch) -> Iterable[tuple[list[Example], Scored]]: ...

    def finish(self) -> Iterable[tuple[list[Example], Scored]]: ...


class Task(Protocol):
    """All that differs between tasks. A task is one file in `scoring/tasks/`.

    `quality` names the measure that comparisons read. `lr` is the default of AdamW's peak rate, `augment` the default
    augmentation. `score_scale` multiplies per-example losses in the score. `bf16_tolerance` is how far two machines' bf16
    may be apart in a loss of at most 1. `compares` says that the training loss compares the examples of a batch, which then
    cannot be split without more.
    """

    name: str
    target: Target
    loss_name: str
    quality: str
    lr: float
    augment: str
    score_scale: float
    bf16_tolerance: float
    compares: bool

    def spec(self, name: str, architecture: str, num_classes: int) -> ModelSpec:
        """Of a published architecture. Raises ModelError where the task's library does not know it."""
        ...

    def spec_of_entry(self, name: str, entry: Mapping[str, Any], num_classes: int, base: Path) -> ModelSpec:
        """Of an entry of curate.toml; relative paths count from `base`. Raises ModelError."""
        ...

    def knows(self, architecture: str) -> bool:
        """Whether the task's library has an architecture of this name."""
        ...

    def without_weights(self, spec: ModelSpec) -> ModelSpec:
        """The same architecture, with nothing to fetch."""
        ...

    def build(self, spec: ModelSpec) -> Model:
        """The module with its preprocessing, its weights random or published."""
        ...

    def targets(self, model: Model, values: Sequence[int | str]) -> torch.Tensor:
        """What the model takes beside images, int64 with B rows."""
        ...

    def blank(self) -> int | str:
        """A target for passes in which only shapes matter."""
        ...

    def outputs(self, model: Model, output: Any, targets: torch.Tensor) -> int:
        """How many classes a pass's logits have, or how wide its embeddings are. `output` is that of `forward` or
        `infer`. Raises ValueError where the task's losses cannot be made of it."""
        ...

    def misfit(self, model: Model, target: int | str) -> str:
        """Why the model has no loss for a target; empty where it has one."""
        ...

    def forward(self, run: Any, images: torch.Tensor, targets: torch.Tensor) -> Any:
        """The training pass: what `training_loss` takes."""
        ...

    def training_loss(
        self,
        model: Model,
        label_smoothing: float = 0.0,
        ranks: Ranks = ALONE,
        gce: float | None = None,
        reduction: Reduction = "mean",
    ) -> Callable[[Any, torch.Tensor], torch.Tensor]:
        """Loss of (output, targets), a mean over the batch, or over this rank's part of it; with reduction "none" each
        example's. `gce` is the q of generalised cross-entropy. Raises SpecError for what the task has not."""
        ...

    def infer(self, run: Any, images: torch.Tensor, targets: torch.Tensor) -> Any:
        """The scoring pass: what `scored` takes."""
        ...

    def scored(self, inferred: Any, targets: torch.Tensor) -> Scored:
        """The scoring loss of each example."""
        ...

    def kept(self, model: Model) -> Any:
        """An object that one worker's scorers of many shards share."""
        ...

    def shard_scorer(
        self,
        model: Model,
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        forward_flops: float,
        kept: Any,
    ) -> ShardScorer: ...

    def fields(self, width: int = 0) -> list[pa.Field]:
        """The score table's columns of this task, with those of its embeddings or logits where a `width` is given."""
        ...

    def columns(self, examples: Sequence[Example], scored: Scored) -> dict[str, Any]:
        """Their values."""
        ...

    def step_metrics(self, targets: torch.Tensor, ranks: Ranks = ALONE) -> dict[str, Any]:
        """The task's values for a line of metrics of a sub-batch. A collective where several ranks share it."""
        ...

    def evaluate(
        self,
        model: Model,
        dataset: DatasetSpec,
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        ranks: Ranks = ALONE,
    ) -> dict[str, float]:
        """All measures that the test split allows, as shares in [0, 1]; `test_examples` is their n. Several ranks share the
        batches, and each is given the result."""
        ...

    def evaluation_flops(self, model: Model) -> EvaluationFlops:
        """What `evaluate` costs."""
        ...


class Model:
    """A built model: its `task`, `module`, `preprocessing` and, where it takes text, `tokenize` (captions -> int64 [B, L]).

    `outputs` is how many classes its logits have, or the width of its embeddings; `load_model` finds it out.
    """

    def __init__(
        self, spec: ModelSpec, task: Task, module: nn.Module, preprocessing: Preprocessing, tokenizer: Any = None
    ) -> None:
        self.spec = spec
        self.task = task
        self.module = module
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self.outputs = 0
        self._mean = torch.tensor(preprocessing.mean) * 255.0
        self._std = torch.tensor(preprocessing.std) * 255.0

    @property
    def geometry(self) -> Geometry:
        return self.preprocessing.geometry

    def targets(self, values: Sequence[int | str]) -> torch.Tensor:
        """Labels int64 [B], or caption tokens int64 [B, L]."""
        return self.task.targets(self, values)

    def tokenize(self, captions: list[str]) -> torch.Tensor:
        tokens: torch.Tensor = self.tokenizer(captions)
        return tokens

    def to(self, device: torch.device | str) -> Model:
        self.module.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def normalize(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] to float32 [B, 3, H, W] (channels last in memory) with this model's mean and std.

        A model of grey images gets float32 [B, 1, H, W]: the luminance, as Pillow's mode L has it, but not rounded.
        """
        B, H, W, C = pixels_BHWC.shape
        if self.preprocessing.channels == 1:
            grey_BHW = pixels_BHWC.float() @ torch.tensor(LUMINANCE, device=pixels_BHWC.device)
            return grey_BHW.sub_(self._mean).div_(self._std).unsqueeze(1)
        # Whole rows, in place: with three channels as the innermost dimension it is four times as slow on CPUs.
        rows = pixels_BHWC.reshape(B, H, W * C).to(torch.float32, copy=True)
        rows.sub_(self._mean.repeat(W)).div_(self._std.repeat(W))
        return rows.view(B, H, W, C).permute(0, 3, 1, 2)

    def fingerprint(self) -> str:
        """64 hex digits of weights, architecture and preprocessing. They do not depend on the model's name or path."""
        architecture = {
            "architecture": self.spec.architecture if self.spec.open_clip_config is None else "",
            "arguments": self.spec.arguments,
            "open_clip_config": self.spec.open_clip_config,
            "preprocessing": self.preprocessing.to_dict(),
            **({"coarse": self.spec.coarse} if self.spec.coarse else {}),
        }
        digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


# Scripts written for 0.1 import these from here.
__getattr__ = lazily("curate.scoring", dict.fromkeys(("find_model", "load_model", "save_weights"), "loading"))
