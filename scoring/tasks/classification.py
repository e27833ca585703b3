"""Image classification: ClassAct of arXiv 2312.05328. Models are timm's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F

from ...datasets.batches import DecodedBatch
from ...datasets.readers import Example
from ...datasets.spec import DatasetSpec
from ...datasets.targets import LABEL
from ...errors import ModelError
from ..evaluation import counts, nothing_read, refuse_misfits, split_batches
from ..flops import forward_flops
from ..forward import score_batch
from ..losses import cross_entropy, generalised_cross_entropy, precise
from ..models import EvaluationFlops, Model, ModelSpec, Scored
from ..ranks import ALONE, Ranks
from ..settings import Precision, Reduction
from ..tables.schema import vector_column, vector_type
from ..timm_models import build_timm, knows_timm, timm_spec


class Classification:
    """Labels; the scoring loss is the cross-entropy of the true one."""

    name = LABEL.task
    target = LABEL
    loss_name = "cross-entropy"
    quality = "top1"
    lr = 2e-3
    augment = "crop-flip"
    score_scale = 1.0
    bf16_tolerance = 0.1
    compares = False

    def spec(self, name: str, architecture: str, num_classes: int) -> ModelSpec:
        return timm_spec(self.name, name, architecture, num_classes, {})

    def spec_of_entry(self, name: str, entry: Mapping[str, Any], num_classes: int, base: Path) -> ModelSpec:
        if "config" in entry:
            raise ModelError(
                f"model '{name}': config = makes an image-text model; a data set with labels takes architecture = "
                "to a timm name, with arguments ="
            )
        if "architecture" not in entry:
            raise ModelError(f"model '{name}': set architecture = to a timm name")
        return timm_spec(self.name, name, entry["architecture"], num_classes, dict(entry.get("arguments", {})), base)

    def knows(self, architecture: str) -> bool:
        return knows_timm(architecture)

    def without_weights(self, spec: ModelSpec) -> ModelSpec:
        return replace(spec, weights="")

    def build(self, spec: ModelSpec) -> Model:
        return build_timm(self, spec)

    def targets(self, model: Model, values: Sequence[int | str]) -> torch.Tensor:
        return torch.tensor([value for value in values if isinstance(value, int)], dtype=torch.int64)

    def blank(self) -> int | str:
        return 0

    def outputs(self, model: Model, output: Any, targets: torch.Tensor) -> int:
        if not isinstance(output, torch.Tensor):
            many = f"{len(output)} outputs" if isinstance(output, list | tuple | dict) else type(output).__name__
            raise ValueError(f"gives {many}, expected one tensor of class logits; it is no classifier")
        if output.dim() != 2 or output.shape[1] < 1:
            raise ValueError(
                f"gives a tensor of {' x '.join(map(str, output.shape[1:]))} for an image, expected one logit for each "
                "class; it is no classifier, or its global_pool or num_classes leaves it none"
            )
        found, wanted = int(output.shape[1]), model.spec.num_classes
        if wanted and found != wanted:
            raise ValueError(f"gives {found} logits, the data set has {wanted} classes")
        return found

    def misfit(self, model: Model, target: int | str) -> str:
        if not model.outputs or int(target) < model.outputs:
            return ""
        return (
            f"label {target} is outside the {model.outputs} outputs of model '{model.spec.name}'; set classes = in the "
            "data set's entry, to their number or their names"
        )

    def forward(self, run: Any, images: torch.Tensor, targets: torch.Tensor) -> Any:
        return run(images)

    def training_loss(
        self,
        model: Model,
        label_smoothing: float = 0.0,
        ranks: Ranks = ALONE,
        gce: float | None = None,
        reduction: Reduction = "mean",
    ) -> Callable[[Any, torch.Tensor], torch.Tensor]:
        if gce is not None:
            return partial(generalised_cross_entropy, q=gce, reduction=reduction)
        return lambda logits_BC, labels_B: F.cross_entropy(
            precise(logits_BC), labels_B, label_smoothing=label_smoothing, reduction=reduction
        )

    def infer(self, run: Any, images: torch.Tensor, targets: torch.Tensor) -> Any:
        return run(images)

    def scored(self, inferred: Any, targets: torch.Tensor) -> Scored:
        return Scored(loss=cross_entropy(inferred, targets), predicted=inferred.argmax(-1))

    def kept(self, model: Model) -> Any:
        return None

    def shard_scorer(
        self,
        model: Model,
        *,
        device: torch.device,
        precision: Precision,
        batch_size: int,
        forward_flops: float,
        kept: Any,
    ) -> _BatchScorer:
        return _BatchScorer(model, device, precision, forward_flops)

    def fields(self, width: int = 0) -> list[pa.Field]:
        found = [pa.field("label", pa.int32(), nullable=False), pa.field("predicted", pa.int32(), nullable=False)]
        return [*found, pa.field("logits", vector_type(width))] if width else found

    def columns(self, examples: Sequence[Example], scored: Scored) -> dict[str, Any]:
        assert scored.predicted is not None
        found = {
            "label": [example.target for example in examples],
            "predicted": scored.predicted.to(torch.int32).cpu().numpy(),
        }
        return found if scored.logits is None else {**found, "logits": vector_column(scored.logits)}

    def step_metrics(self, targets: torch.Tensor, ranks: Ranks = ALONE) -> dict[str, Any]:
        return {"masked_negatives": None}

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
        correct = total = failures = 0
        loss = 0.0
        with ranks.together():
            for batch in split_batches(model, dataset, batch_size, ranks):
                refuse_misfits(model, batch.examples)
                labels = torch.tensor([e.target for e in batch.examples], dtype=torch.int64, device=device)
                scored = score_batch(model, torch.from_numpy(batch.pixels).to(device), labels, precision=precision)
                assert scored.predicted is not None
                correct += int((scored.predicted == labels).sum())
                loss += float(scored.loss.sum())
                total += len(labels)
                failures += len(batch.failures)
        sums = ranks.sum(torch.tensor([correct, total, failures, loss], dtype=torch.float64)).tolist()
        correct, total, failures, loss = *map(int, sums[:3]), sums[3]
        if not total:
            raise nothing_read(dataset)
        return {"top1": correct / total, "loss": loss / total, **counts(total, failures)}

    def evaluation_flops(self, model: Model) -> EvaluationFlops:
        return EvaluationFlops(forward_flops(model).per_example)


@dataclass
class _BatchScorer:
    """Scores each batch when it is added."""

    model: Model
    device: torch.device
    precision: Precision
    forward_flops: float
    flops: float = 0.0

    def prepare(self, batch: DecodedBatch) -> None:
        pass

    def add(self, batch: DecodedBatch) -> Iterable[tuple[list[Example], Scored]]:
        pixels = torch.from_numpy(batch.pixels).to(self.device, non_blocking=True)
        labels = self.model.targets([example.target for example in batch.examples]).to(self.device)
        self.flops += self.forward_flops * len(batch.examples)
        return [(batch.examples, score_batch(self.model, pixels, labels, precision=self.precision, logits=True))]

    def finish(self) -> Iterable[tuple[list[Example], Scored]]:
        return ()
