"""Shared by the tasks' measures of quality: decoded batches of a test split, and recall."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch

from ..datasets.batches import DecodedBatch, decoded_batches, prefetch
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import list_shards
from ..datasets.spec import DatasetSpec
from ..errors import ModelError, SpecError
from .models import Model
from .ranks import ALONE, Ranks

# A held-out part of a large train split is as good as this many of its examples.
MOST_HELD_OUT = 10_000
RECALL_AT = (1, 5, 10)
BLOCK = 1024


def split_batches(model: Model, dataset: DatasetSpec, batch_size: int, ranks: Ranks = ALONE) -> Iterator[DecodedBatch]:
    """The test split, decoded for this model; of several ranks, each is given every so many-th batch. Raises SpecError where
    the data set has none."""
    records: Iterable[Example | Failure] = (
        record for shard in list_shards(dataset, "test") for record in read_shard(dataset, shard)
    )
    if dataset.hold_out:
        records = islice(records, MOST_HELD_OUT)
    if ranks.size > 1:
        records = (r for i, r in enumerate(records) if i // batch_size % ranks.size == ranks.rank)
    return prefetch(decoded_batches(records, model.geometry, batch_size))


def refuse_misfits(model: Model, examples: Sequence[Example]) -> None:
    """Raises ModelError for the first example for whose target the model has no loss."""
    for example in examples:
        why = model.task.misfit(model, example.target)
        if why:
            raise ModelError(f"shard '{example.shard}', key '{example.key}': {why}")


def nothing_read(dataset: DatasetSpec) -> SpecError:
    return SpecError(f"data set '{dataset.name}': nothing in its test split could be read")


def counts(examples: int, failures: int) -> dict[str, int]:
    """What a measure says of its n; failures are named only where there are some."""
    return {"test_examples": examples} | ({"test_failures": failures} if failures else {})


def recalls(
    image_ND: torch.Tensor, text_MD: torch.Tensor, image_of_M: torch.Tensor, caption_M: torch.Tensor
) -> dict[str, float]:
    """R@1/5/10 of both directions: the share of queries with a right answer among their k nearest by dot product.

    N images have M captions: `image_of_M` says whose each one is, `caption_M` is the same number for captions of the same
    words. Any caption of an image is right for it. So is one of the same words, which cannot be distinguished from it.
    """
    words = int(caption_M.max()) + 1
    right_M = image_of_M * words + caption_M  # each pair of an image and a caption of it as one number
    images_N = torch.arange(len(image_ND), device=image_of_M.device)
    return {
        **_recall(
            image_ND,
            text_MD,
            lambda q, answer: torch.isin(images_N[q] * words + caption_M[answer], right_M),
            "image_to_text",
        ),
        **_recall(
            text_MD, image_ND, lambda q, answer: torch.isin(answer * words + caption_M[q], right_M), "text_to_image"
        ),
    }


def _recall(
    query_QD: torch.Tensor,
    answer_AD: torch.Tensor,
    is_right: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    name: str,
) -> dict[str, float]:
    """`is_right` is given the numbers of queries, [q, 1], and of their answers, [q, k]."""
    hits = dict.fromkeys(RECALL_AT, 0)
    most = min(max(RECALL_AT), len(answer_AD))
    for numbers_q in torch.arange(len(query_QD), device=query_QD.device).split(BLOCK):
        nearest_qk = (query_QD[numbers_q] @ answer_AD.T).topk(most).indices
        right_qk = is_right(numbers_q[:, None], nearest_qk)
        for k in RECALL_AT:
            hits[k] += int(right_qk[:, :k].any(1).sum())
    return {f"{name}_r{k}": count / len(query_QD) for k, count in hits.items()}
