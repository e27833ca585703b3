"""Quality on the clean test split, by the task's own measures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..datasets.batches import decode_all
from ..datasets.decoding import Geometry
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..errors import FailuresError, ShardError, SpecError, StorageError
from ..scoring.forward import best_device, best_precision, float32_products
from ..scoring.loading import find_model, load_model
from ..scoring.models import Model
from ..scoring.ranks import ALONE, Ranks
from ..scoring.settings import Precision, check_precision

# A test split up to this size is read before the first step as well as after the last.
READ_WHOLE = 1 << 28
DECODED = 16


def evaluate(
    model: Model,
    dataset: DatasetSpec,
    *,
    device: torch.device,
    precision: Precision,
    batch_size: int = 512,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """All measures that a data set's test split allows, as shares in [0, 1]; `test_examples` is their n, and
    `test_failures`, where there are any, how many examples of the split could not be used. Several `ranks` share
    the work: all call it, and each is given the result.

    Raises SpecError where there is no test split or nothing in it decodes, ShardError and StorageError where it cannot be
    read.
    """
    return model.task.evaluate(model, dataset, device=device, precision=precision, batch_size=batch_size, ranks=ranks)


def check_test_split(dataset: DatasetSpec, allowed: float) -> list[Shard]:
    """The test split's shards, read before a run spends anything: whole where they are small, else the first example of
    each. Raises ShardError, StorageError, SpecError and FailuresError, as evaluating would after the last step.

    More than the `allowed` share of bad examples is an error.
    """
    where, way_out = f"data set '{dataset.name}', test split", "or train with --no-evaluate"
    try:
        shards = list_shards(dataset, "test")
        whole = sum(shard.bytes for shard in shards) <= READ_WHOLE
        found: list[Example] = []
        bad: list[Failure] = []
        seen = 0
        for shard in shards:
            for record in read_shard(dataset, shard):
                if isinstance(record, Failure):
                    bad.append(record)
                    continue
                seen += 1
                if len(found) < DECODED:
                    found.append(record)
                if not whole:
                    break
    except (ShardError, StorageError) as e:
        told = str(e).removeprefix(f"data set '{dataset.name}': ")
        raise type(e)(f"{where}: {told}, {way_out}") from e
    if found:
        with ThreadPoolExecutor(1) as pool:
            looks = decode_all(found, Geometry(size=8), pool)
        if all(isinstance(look, Failure) for look in looks):
            bad, seen = looks, 0
    if not seen:
        why = f" ({bad[0].reason})" if bad else ""
        raise SpecError(f"{where}: no example can be used{why}; set test = in its entry, {way_out}")
    if whole:
        refuse_few(where, seen, len(bad), allowed, f"the first: {bad[0].key}, {bad[0].reason}" if bad else "")
    return shards


def refuse_few(where: str, examples: int, failures: int, allowed: float, more: str = "") -> None:
    """Raises FailuresError where more than the allowed share of a test split cannot be used."""
    if failures > allowed * (examples + failures):
        raise FailuresError(
            f"{where}: {failures:,} of {examples + failures:,} examples are bad (allowed {allowed:.1%}: --max-failures)"
            + (f"; {more}" if more else "")
        )


def evaluate_by_name(name: str, dataset: str, config: Config, precision: str | None = None) -> dict[str, float]:
    """`evaluate` of any model that `curate train` would take, on any data set with a test split. Raises CurateError."""
    check_precision(precision)
    spec = find_dataset(dataset, config)
    model_spec = find_model(name, task=spec.task, num_classes=spec.num_classes, config=config)
    device = best_device()
    model = load_model(model_spec, trained=True).to(device)
    chosen: Any = precision or best_precision(device)
    with float32_products(device, chosen):
        return evaluate(model, spec, device=device, precision=chosen)
