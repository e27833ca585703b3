"""`train --refresh-scores`: while a run trains, losses of a newer reference take the place of a table's, a shard at a time.

An epoch has the newer losses of the shards that were complete in the newer table when the first of its lanes began it.
`scores.json` in the run's folder has these decisions, so a resumed run and a replay choose by the same losses. Which examples
there are, and their order, is the first table's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..datasets.shards import Shard
from ..datasets.writing import write_whole
from ..errors import RunError, TableError
from ..options import refuse_with
from ..scoring.tables.lookup import ScoreTable, open_scores
from ..units import Report
from .options import RunOptions
from .records import read_document
from .refreshed import RefreshedTable, Renewals

FILE = "scores.json"


def refuse_refresh(options: RunOptions, ranks: int) -> None:
    """Raises SpecError where the options do not go with --refresh-scores."""
    if options.selection.refresh_scores is None:
        return
    reasons = {
        "torchrun or srun": ranks > 1,
        "--follow": options.data.follow,
        "--actors": bool(options.asynchronous.actors),
        "--mix": options.data.mixture is not None,
        "--distill, which reads stored logits": options.optimization.distill > 0,
        "--charge-reference, which pays before step 1": options.budget.charge_reference,
    }
    refuse_with("refresh_scores", reasons)


def refreshed_table(
    run: Path,
    table: ScoreTable,
    path: str,
    shards: Sequence[Shard],
    report: Report,
    *,
    began: bool,
    recorded: Path | None,
) -> RefreshedTable:
    """The table of a run, with newer losses from the table at `path`: as the run has written down if it `began`, and more as
    they come. A replay of the run whose folder is `recorded` has its losses, and no more.

    Raises TableError where the two tables are not of one data set, or do not measure alike.
    """
    newer = open_scores(path)
    if newer.reference_fingerprint == table.reference_fingerprint:
        raise TableError(f"{newer.folder}: is of the same reference as {table.folder}; give that of a newer one")
    for name in ("dataset", "dataset_fingerprint", "loss"):
        ours, theirs = (one.manifest.get(name) for one in (table, newer))
        if ours != theirs:
            raise TableError(
                f"{newer.folder}: its {name} is {theirs}, that of {table.folder} is {ours}; score the same"
            )
    coarse = [one.manifest["reference"]["model"].get("coarse", {}) for one in (table, newer)]
    if coarse[0] != coarse[1]:
        raise TableError(f"{newer.folder}: scored with {coarse[1]}, {table.folder} with {coarse[0]}; score alike")

    def note(decided: Sequence[Renewals]) -> None:
        content = {"reference": newer.reference_fingerprint, "epochs": [asdict(one) for one in decided]}
        write_whole(run / FILE, (json.dumps(content, indent=1) + "\n").encode())

    source = recorded or (run if began else None)
    decided = _read(source, newer) if source is not None else []
    found = RefreshedTable(table, newer, shards, decided, look=recorded is None, note=note, report=report)
    if recorded is not None and not began:
        note(decided)
    found.decide(0)
    return found


def _read(run: Path, newer: ScoreTable) -> list[Renewals]:
    """What a run wrote down. Raises RunError where it is missing or damaged, or of another reference."""
    path = run / FILE
    if not path.exists():
        raise RunError(f"{path}: is missing, and says whose losses each epoch has; restore it, or begin anew: --name")
    content = read_document(path)
    try:
        reference, decided = content["reference"], [Renewals.from_dict(one) for one in content["epochs"]]
    except (KeyError, TypeError) as e:
        raise RunError(f"{path}: is damaged ({e!r}); restore it, or begin anew: --name") from None
    if reference != newer.reference_fingerprint:
        raise RunError(
            f"{path}: newer losses were of reference {reference[:8]}, {newer.folder} is of "
            f"{newer.reference_fingerprint[:8]}; restore what the run began with, or begin anew: --name"
        )
    return decided
