"""The model behind a score table. A table may come from a stranger: what it says of its model is not built unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...datasets.spec import Config, DatasetSpec
from ...errors import ModelError, TableError, without_secrets
from ..loading import LEARNER_FILE, find_model
from ..models import ModelSpec
from ..settings import Coarse
from .lookup import ScoreTable


def reference_of_table(
    table: ScoreTable, dataset: DatasetSpec, config: Config, *, name: str | None = None, trust: bool = False
) -> ModelSpec:
    """The model `name`, else the user's own that made the table; what the table describes only where it is trusted.

    A description may have URLs, names of hubs, and arguments for whatever makes a tokenizer. The user's own is a run
    folder of this machine, or an entry of curate.toml with the same weights. Raises ModelError where there is none.
    """
    about = table.manifest["reference"]["model"]
    try:
        coarse = Coarse.from_dict(about.get("coarse", {})).to_dict()
        described = ModelSpec(**about)
    except (TypeError, AttributeError) as e:
        raise TableError(f"{table.folder}: its manifest describes no model ({e}); give the whole table") from None
    if name is None and trust:
        return described
    if name is None:
        name = _own(described, dataset, config)
    if name is None:
        raise ModelError(
            f"{table.folder}: '{described.name}', which made it, is no model of yours here; give --reference NAME, or "
            "--trust-table to build what the table describes"
        )
    spec = find_model(name, task=dataset.task, num_classes=dataset.num_classes, config=config)
    return replace(spec, coarse=coarse)


def _own(described: ModelSpec, dataset: DatasetSpec, config: Config) -> str | None:
    """The name of the user's own model whose weights are the described ones; None where there is none."""
    run = described.weights.removesuffix("/" + LEARNER_FILE)
    if run != described.weights and "://" not in run and Path(described.weights).exists():
        return run
    if described.name in config.models:
        try:
            own = find_model(described.name, task=dataset.task, num_classes=dataset.num_classes, config=config)
        except ModelError:
            return None
        if own.weights and without_secrets(own.weights) == described.weights:
            return described.name
    return None
