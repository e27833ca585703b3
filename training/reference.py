"""The reference's side of a run: its score table, verified before step 1, and the model itself where it is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from ..datasets.batches import decode_all, decode_threads
from ..datasets.readers import Example, read_shard
from ..datasets.shards import Shard
from ..datasets.spec import Config, DatasetSpec
from ..errors import ModelError, ShardError, StorageError, TableError
from ..progress import working
from ..scoring.forward import score_batch
from ..scoring.loading import load_model
from ..scoring.models import Model
from ..scoring.settings import Precision
from ..scoring.tables.check import check_table
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..scoring.tables.reference import reference_of_table
from ..units import Report
from .agreement import LEAST_CORRELATION, Agreement
from .options import RunOptions

RESCORED_EXAMPLES = 64
# What decides which part of an image a model sees, and how finely.
SEEN = ("size", "mode", "crop_pct", "interpolation")
# What two models of one run may differ in by accident. Two sizes are meant.
DECODED = ("mode", "crop_pct", "interpolation", "resampling", "exif_rotation")


@dataclass(frozen=True)
class Reference:
    """The table and the model behind it, each None where the policy or the machine has none."""

    table: ScoreTable | None
    model: Model | None
    rescored: int


def open_reference(
    options: RunOptions,
    config: Config,
    dataset: DatasetSpec,
    shards: Sequence[Shard],
    device: torch.device,
    log: Report,
    precision: Precision | None = None,
    *,
    verify: bool = True,
    opened: ScoreTable | None = None,
) -> Reference:
    """The table that a policy needs, checked over all its rows and against its reference; and the reference. What
    computing in the run's `precision` changes is said where the table was made in another one.

    The model is None where it is not on this machine, or is described by nobody but the table: a table may be shipped
    alone, and by a stranger. Without `verify` another process has checked the rows. `opened` is the table, where it was
    opened before. Raises TableError, and ModelError where
    the user asked for what only the reference can give.
    """
    if not options.uses_table or not options.selection.reference_scores:
        return Reference(None, None, 0)
    table = opened or open_scores(options.selection.reference_scores)
    if verify:
        with working(log, "checking the score table"):
            check_table(table, dataset, shards, options.selection.on_missing, options.super_batch_size)
    try:
        spec = reference_of_table(
            table, dataset, config, name=options.selection.reference, trust=options.selection.trust_table
        )
        reference = load_model(spec, trained=True)
    except ModelError as e:
        if options.selection.reference or options.selection.trust_table or options.selection.on_missing == "score":
            raise
        log(f"its scores are joined without scoring a few of them again: {e}")
        return Reference(table, None, 0)
    if reference.fingerprint() != table.reference_fingerprint:
        raise TableError(
            f"{table.folder}: was scored by reference {table.reference_fingerprint[:8]}, "
            f"'{spec.name}' is {reference.fingerprint()[:8]}; give the table of this reference, or score again"
        )
    rescored = check_rescored(table, reference.to(device), dataset, shards, device, log, precision)
    return Reference(table, reference, rescored)


def check_rescored(
    table: ScoreTable,
    reference: Model,
    dataset: DatasetSpec,
    shards: Sequence[Shard],
    device: torch.device,
    log: Report,
    own_precision: Precision | None = None,
) -> int:
    """Score a few examples again: what the table says of an image must be what its reference says of it now.

    Returns how many were scored. A changed label is left to the join, which names it as such. Raises TableError with shard,
    key and both losses, or with the rank correlation of all.
    """
    then: list[float] = []
    examples = []
    for example in read_some(dataset, [s for s in shards if table.holds(s.name)], RESCORED_EXAMPLES):
        scores = table.recent(example.shard)
        place = scores.places.get(example.key)
        if place is not None and int(scores.target_hash[place]) == example.target_hash:
            examples.append(example)
            then.append(float(scores.loss[place]))
    with ThreadPoolExecutor(decode_threads()) as pool:
        decoded = decode_all(examples, reference.geometry, pool)
    kept = [i for i, pixels in enumerate(decoded) if isinstance(pixels, np.ndarray)]
    if not kept:
        return 0
    pixels = torch.from_numpy(np.stack([np.asarray(decoded[i]) for i in kept])).to(device)
    targets = reference.targets([examples[i].target for i in kept]).to(device)
    precision: Precision = table.manifest["precision"]
    # What a table's format changes is measured on these examples, by scoring them in float32 too.
    own: Precision = own_precision or precision
    needed: list[Precision] = ["fp32", "bf16"] if precision != "fp32" else [*dict.fromkeys([precision, own])]
    found = {one: score_batch(reference, pixels, targets, precision=one).loss.float().cpu().numpy() for one in needed}
    now_K, then_K = found[precision], np.array([then[i] for i in kept])
    agree = Agreement.of(now_K, found["fp32"], reference.task.bf16_tolerance) if precision != "fp32" else Agreement()
    wrong = agree.first_apart(then_K, now_K)
    if wrong is not None:
        example = examples[kept[wrong]]
        raise TableError(
            f"{table.folder}: shard '{example.shard}', key '{example.key}': the table's loss is {then_K[wrong]:.5g}, the "
            f"reference says {now_K[wrong]:.5g} now; pictures or preprocessing changed: score again into a new --out"
        )
    correlation = agree.rank_correlation(then_K, now_K)
    if correlation is not None and correlation < LEAST_CORRELATION:
        raise TableError(
            f"{table.folder}: the table orders {len(kept)} examples otherwise than the reference does now (rank correlation "
            f"{correlation:.2f}, expected {LEAST_CORRELATION} or more), though no loss differs by more than "
            f"{np.abs(then_K - now_K).max():.2g}; pictures or preprocessing changed: score again into a new --out"
        )
    if own != precision:
        apart_K = np.abs(now_K - found[own])
        log(
            f"the table's losses were computed in {precision}, this run scores in {own}: of {len(kept)} examples "
            f"the reference's loss differs by {apart_K.mean():.2g} on average, {apart_K.max():.2g} at most"
        )
    return len(needed) * len(kept)


def note_geometry(reference: ScoreTable | Model | None, scorer: Model | None, log: Report) -> None:
    """Say once where the reference, behind a table or in the run, and the model that scores beside it see images otherwise."""
    if reference is None or scorer is None:
        return
    if isinstance(reference, Model):
        theirs = reference.geometry.to_dict()
    else:
        theirs = reference.manifest["reference"].get("preprocessing", {})
    ours = scorer.geometry.to_dict()
    other = [f"{k} {theirs[k]} and {ours[k]}" for k in SEEN if k in theirs and theirs[k] != ours[k]]
    if other:
        log(
            f"the reference and '{scorer.spec.name}' see images otherwise ({', '.join(other)}), and their losses differ by "
            "that too; preprocessing = in the model's entry makes them alike"
        )


def note_views(learner: Model, online: Model | None, log: Report) -> None:
    """Say once where the learner and the online model see images otherwise, other than at another size."""
    if online is None:
        return
    one, other = learner.geometry.to_dict(), online.geometry.to_dict()
    differ = [f"{k} {one.get(k, False)} and {other.get(k, False)}" for k in DECODED if one.get(k) != other.get(k)]
    if differ:
        log(
            f"the learner and '{online.spec.name}' see images otherwise ({', '.join(differ)}): each image that is chosen is "
            "decoded twice and augmented twice; preprocessing = in the model's entry makes them alike"
        )


def read_some(dataset: DatasetSpec, shards: Sequence[Shard], count: int) -> list[Example]:
    """Up to `count` examples of the first, the middle and the last shard, for checks before a run."""
    if not shards:
        return []
    chosen = {shard.name: shard for shard in (shards[0], shards[len(shards) // 2], shards[-1])}
    found: list[Example] = []
    for shard in chosen.values():
        with suppress(
            ShardError, StorageError
        ):  # whether a run may go on without this shard is decided where it trains
            records = islice(read_shard(dataset, shard), -(-count // len(chosen)))
            found += [record for record in records if isinstance(record, Example)]
    return found
