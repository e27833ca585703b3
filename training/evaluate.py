"""Quality on the clean test split: top-1; for image-text, retrieval both ways and zero-shot classification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ..datasets.batches import DecodedBatch, decoded_batches, prefetch
from ..datasets.readers import read_shard
from ..datasets.shards import list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..errors import SpecError
from ..scoring.forward import autocast, best_device, best_precision, evaluating, score_batch
from ..scoring.loading import find_model, load_model
from ..scoring.models import Model
from ..scoring.settings import Precision, check_precision

RECALL_AT = (1, 5, 10)
BLOCK = 1024


def evaluate(
    model: Model, dataset: DatasetSpec, *, device: torch.device, precision: Precision, batch_size: int = 512
) -> dict[str, float]:
    """All measures that a data set's test split allows, as shares in [0, 1]; `test_examples` is their n.

    Raises SpecError where there is no test split or nothing in it decodes.
    """
    if dataset.task == "classification":
        return _classification(model, dataset, device, precision, batch_size)
    quality = _retrieval(model, dataset, device, precision, batch_size)
    if dataset.label and dataset.classes:
        quality["zero_shot_top1"] = _zero_shot(model, dataset, device, precision, batch_size)
    return quality


def evaluate_by_name(name: str, dataset: str, config: Config, precision: str | None = None) -> dict[str, float]:
    """`evaluate` of any model that `curate train` would take, on any data set with a test split. Raises CurateError."""
    check_precision(precision)
    spec = find_dataset(dataset, config)
    model_spec = find_model(name, task=spec.task, num_classes=spec.num_classes, config=config)
    device = best_device()
    model = load_model(model_spec, trained=True).to(device)
    chosen: Any = precision or best_precision(device)
    return evaluate(model, spec, device=device, precision=chosen)


def _test_batches(model: Model, dataset: DatasetSpec, batch_size: int) -> Iterator[DecodedBatch]:
    records = (record for shard in list_shards(dataset, "test") for record in read_shard(dataset, shard))
    return prefetch(decoded_batches(records, model.geometry, batch_size))


def _classification(
    model: Model, dataset: DatasetSpec, device: torch.device, precision: Precision, batch_size: int
) -> dict[str, float]:
    correct = total = 0
    loss = 0.0
    for batch in _test_batches(model, dataset, batch_size):
        labels = torch.tensor([e.target for e in batch.examples], dtype=torch.int64, device=device)
        scored = score_batch(model, torch.from_numpy(batch.pixels).to(device), labels, precision=precision)
        assert scored.predicted is not None
        correct += int((scored.predicted == labels).sum())
        loss += float(scored.loss.sum())
        total += len(labels)
    if not total:
        raise SpecError(f"data set '{dataset.name}': nothing in its test split could be read")
    return {"top1": correct / total, "loss": loss / total, "test_examples": total}


def _retrieval(
    model: Model, dataset: DatasetSpec, device: torch.device, precision: Precision, batch_size: int
) -> dict[str, float]:
    images, texts, captions = [], [], []
    for batch in _test_batches(model, dataset, batch_size):
        batch_captions = [str(e.target) for e in batch.examples]
        if not batch_captions:
            continue
        tokens = model.tokenize(batch_captions).to(device)
        scored = score_batch(model, torch.from_numpy(batch.pixels).to(device), tokens, precision=precision)
        images.append(scored.image_embedding)
        texts.append(scored.text_embedding)
        captions += batch_captions
    if not captions:
        raise SpecError(f"data set '{dataset.name}': nothing in its test split could be read")
    image_ND, text_ND = torch.cat([i for i in images if i is not None]), torch.cat([t for t in texts if t is not None])
    ids = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    caption_N = torch.tensor([ids[caption] for caption in captions], device=device)
    quality = recall(image_ND, text_ND, caption_N, "image_to_text") | recall(
        text_ND, image_ND, caption_N, "text_to_image"
    )
    # One number of less noise than a single recall: a test split has some hundred queries.
    return {"mean_recall": sum(quality.values()) / len(quality), **quality, "test_examples": len(captions)}


def recall(query_ND: torch.Tensor, answer_ND: torch.Tensor, group_N: torch.Tensor, name: str) -> dict[str, float]:
    """R@1/5/10: the share of queries with a right answer among their k nearest by dot product.

    Answers of the same `group_N` as the query are right: pairs with identical captions cannot be told apart.
    """
    hits = dict.fromkeys(RECALL_AT, 0)
    most = min(max(RECALL_AT), len(answer_ND))
    for start in range(0, len(query_ND), BLOCK):
        part = slice(start, start + BLOCK)
        nearest = (query_ND[part] @ answer_ND.T).topk(most).indices
        right = group_N[nearest] == group_N[part, None]
        for k in RECALL_AT:
            hits[k] += int(right[:, :k].any(1).sum())
    return {f"{name}_r{k}": count / len(query_ND) for k, count in hits.items()}


def _zero_shot(
    model: Model, dataset: DatasetSpec, device: torch.device, precision: Precision, batch_size: int
) -> float:
    """Classify by the nearest class embedding, the mean over the templates (Radford et al., arXiv 2103.00020)."""
    with evaluating(model.module), torch.inference_mode(), autocast(device, precision):
        class_DC = torch.stack([_class_embedding(model, name, dataset, device) for name in dataset.classes], dim=1)
    labelled = replace(dataset, task="classification")
    correct = total = 0
    for batch in _test_batches(model, labelled, batch_size):
        if not batch.examples:
            continue
        labels = torch.tensor([e.target for e in batch.examples], device=device)
        with evaluating(model.module), torch.inference_mode(), autocast(device, precision):
            images = model.normalize(torch.from_numpy(batch.pixels).to(device))
            image_BD = model.module.encode_image(images, normalize=True).float()  # type: ignore[operator]
        correct += int(((image_BD @ class_DC).argmax(1) == labels).sum())
        total += len(labels)
    return correct / max(1, total)


def _class_embedding(model: Model, name: str, dataset: DatasetSpec, device: torch.device) -> torch.Tensor:
    tokens = model.tokenize([template.replace("{}", name) for template in dataset.templates]).to(device)
    text_TD: torch.Tensor = model.module.encode_text(tokens, normalize=True).float()  # type: ignore[operator]
    return torch.nn.functional.normalize(text_TD.mean(0), dim=0)
