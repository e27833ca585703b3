"""Whether the finished runs of a comparison's folder are what the comparison would make now.

A finished run that is not is refused, never made again: what it cost is not thrown away without being asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..datasets.shards import list_shards
from ..datasets.spec import Config, find_dataset
from ..errors import RunError
from ..scoring.forward import best_device, best_precision
from ..scoring.loading import find_model, load_model
from ..scoring.tables.lookup import open_scores
from ..training import frozen
from ..training.folder import began_with, refuse_other_options
from ..training.options import RunOptions
from ..units import Report


def refuse_mixed(finished: Sequence[tuple[Path, RunOptions]], base: RunOptions, config: Config, report: Report) -> None:
    """Raises RunError at the first finished run that was made with other options, data, models or scores than now."""
    if not finished:
        return
    now = _now(base, config)
    told: set[str] = set()
    for folder, options in finished:
        refuse_other_options(folder, options)
        before = began_with(folder)
        changed = frozen.refused(before, now)
        if changed:
            raise RunError(
                f"{folder}: was made with {changed[0]}; use another --out, or delete this run to make it again"
            )
        told.update(frozen.said(before, now))
    for difference in sorted(told):
        report(f"some finished runs were made with {difference}")


def _now(base: RunOptions, config: Config) -> dict[str, Any]:
    """The parts of a run's manifest that all runs of a comparison share."""
    dataset = find_dataset(base.dataset, config)
    shards = list_shards(dataset)
    names = {"learner": base.learner, "online": base.selection.online}
    specs = {
        role: find_model(name, task=dataset.task, num_classes=dataset.num_classes, config=config)
        for role, name in names.items()
        if name
    }
    models = {role: load_model(spec) for role, spec in specs.items()}
    scores = base.selection.reference_scores
    table = open_scores(scores) if scores else None
    return {
        "versions": frozen.versions(),
        "precision": base.optimization.precision or best_precision(best_device()),
        "dataset": frozen.dataset_of(dataset, shards),
        "models": frozen.models_of(models),
        "score_table": table and {"reference": table.manifest["reference"]},
        "began": {
            "train": frozen.shards_of(shards),
            "test": frozen.shards_of(list_shards(dataset, "test")),
            "weights": {role: frozen.weights_of(model) for role, model in models.items()},
            "score_table": frozen.table_of(table, shards) if table is not None else None,
        },
    }
