"""Shared by the tasks' measures of quality: decoded batches of a test split, and recall."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


def recall(query_ND: torch.Tensor, answer_ND: torch.Tensor, group_N: torch.Tensor, name: str) -> dict[str, float]:
    """R@1/5/10: the share of queries with a right answer among their k nearest by dot product.

    Answers of the same `group_N` as the query are right, because pairs with identical captions cannot be distinguished.
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
