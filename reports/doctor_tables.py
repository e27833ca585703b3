"""A data set's score tables: how much they cover, how old they are, and whether their reference is here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from shlex import quote

import numpy as np

from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec
from ..datasets.storage import list_times
from ..errors import CurateError, ModelError, TableError
from ..scoring.tables.counts import all_counts
from ..scoring.tables.lookup import ScoreTable
from ..scoring.tables.read import error_names
from ..scoring.tables.schema import ENDING
from .doctor_findings import Finding
from .status import ago
from .table_choice import tables_of

# Of so many shards, spread over the table, predictions are looked at.
SAMPLED = 32
# A class with so many labels among them should be predicted this often for each of its labels.
FEW, RARELY = 20, 0.1


def look_at_tables(spec: DatasetSpec, scores: str, config: Config) -> list[Finding]:
    """Findings on every table of the data set in or below `scores`. Raises as list_shards does."""
    tables = tables_of(scores, spec.name)
    if not tables:
        return [Finding(f"score tables of {spec.name}", "note", f"none in {scores}", _score(spec, scores, "MODEL"))]
    shards = list_shards(spec)
    return [finding for table in tables for finding in _table(table, spec, config, shards, scores)]


def _score(spec: DatasetSpec, out: str, reference: str) -> str:
    return f"curate score-reference --dataset {quote(spec.name)} --out {quote(out)} --reference {quote(reference)}"


def _table(
    table: ScoreTable, spec: DatasetSpec, config: Config, shards: Sequence[Shard], scores: str
) -> Iterator[Finding]:
    about, reference = f"score table {table.folder}", table.manifest["reference"]["name"]
    again, anew = (_score(spec, out, reference) for out in (scores, "NEW"))
    if table.manifest["dataset_fingerprint"] != spec.fingerprint:
        yield Finding(about, "act", "made with other fields or classes than curate.toml has now", anew)
        return
    try:
        counts = all_counts(table.folder)
    except CurateError as e:
        yield Finding(about, "act", str(e), again)
        return
    missing = [shard.name for shard in shards if shard.name not in counts]
    changed = [s.name for s in shards if s.name in counts and counts[s.name].shard_size != s.size]
    held = [counts[shard.name] for shard in shards if shard.name in counts]
    examples, failures = (sum(getattr(c, name) for c in held) for name in ("examples", "failures"))
    covers = f"{len(shards) - len(missing):,} of {len(shards):,} shards, {examples:,} examples, {failures:,} failed"
    unreadable = error_names(table.folder)
    if missing:
        first = f"; first missing: '{missing[0]}'"
        told = f"; {len(unreadable):,} could not be read" if unreadable else ""
        yield Finding(about, "act", f"covers {covers}{first}{told}", again)
    else:
        yield Finding(about, "ok", f"covers {covers}")
    if changed:
        yield Finding(
            about,
            "act",
            f"{len(changed):,} shards have another size than when they were scored, first '{changed[0]}'",
            anew,
        )
    times = [t for name, t in list_times(table.folder).items() if name.endswith(ENDING) and t is not None]
    if times:
        yield Finding(about, "ok", f"last written {ago(time.time() - max(times))} ago")
    yield _reference(table, about, spec, config)
    yield from _unknown_classes(table, about, spec)


def _unknown_classes(table: ScoreTable, about: str, spec: DatasetSpec) -> Iterator[Finding]:
    """Classes that the reference hardly ever predicts: it was trained on few of them or on none, and their losses are so high
    that a choice by them leaves nearly all of these examples out."""
    names = sorted(table.shard_names())
    if not names or not spec.classes:
        return
    try:
        rows = table.read(["label", "predicted"], names[:: -(-len(names) // SAMPLED)])
    # Captions are no classes; what cannot be read is told by the look at what the table covers.
    except (KeyError, CurateError):
        return
    n = spec.num_classes
    labelled, predicted = (np.bincount(rows[of].to_numpy(), minlength=n)[:n] for of in ("label", "predicted"))
    unknown = np.flatnonzero((labelled >= FEW) & (predicted < RARELY * labelled))
    if len(unknown):
        shown = ", ".join(spec.classes[i] for i in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        yield Finding(
            about,
            "note",
            f"its reference hardly ever predicts {len(unknown):,} of {len(labelled):,} classes ({shown}): choosing by it leaves "
            "them out; train a reference that knows them, or keep as much of every class",
            f"curate train --dataset {spec.name} --policy filter --keep-by class --reference-scores {table.folder} ...",
        )


def _reference(table: ScoreTable, about: str, spec: DatasetSpec, config: Config) -> Finding:
    """Whether the user's own model that made the table is here, so that a run can check some losses before it starts. What the
    table says of its model is never built: the table may be a stranger's."""
    from ..scoring.loading import load_model
    from ..scoring.tables.reference import reference_of_table

    name = table.manifest["reference"]["name"]
    try:
        own = reference_of_table(table, spec, config)
    except TableError as e:
        return Finding(about, "act", str(e), f"curate status {table.folder}")
    except ModelError:
        return Finding(
            about,
            "note",
            f"its reference, {name}, is no model of yours here; runs cannot check its losses, unless --reference names it",
            f"curate train --dataset {spec.name} --reference-scores {table.folder} --reference {name} ...",
        )
    try:
        fingerprint = load_model(own, trained=True).fingerprint()
    except CurateError as e:
        look = f"curate evaluate {name} --dataset {spec.name}"
        return Finding(about, "act", f"its reference cannot be loaded: {e}", look)
    if fingerprint != table.reference_fingerprint:
        return Finding(
            about,
            "act",
            f"its reference {name} changed: it was {table.reference_fingerprint[:8]}, and is {fingerprint[:8]}",
            f"curate score-reference --dataset {spec.name} --reference {name}",
        )
    return Finding(about, "ok", f"its reference {name} is here, with the same weights")
