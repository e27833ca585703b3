"""`curate doctor`: what works here, what does not, and for each thing that does not, the line to type.

It measures rather than guesses: it multiplies matrices, lists stores, reads and decodes some shards.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..errors import CurateError, SpecError
from ..units import Report
from .doctor_data import look_at_data
from .doctor_findings import Finding
from .doctor_machine import look_at_machine
from .doctor_stores import look_at_stores
from .doctor_tables import look_at_tables


def diagnose(config: Config, datasets: Sequence[str], scores: str, shards: int, report: Report) -> list[Finding]:
    """Look at the machine, then at each data set and its score tables. Without names: all of curate.toml.

    `shards` are read of each source of a data set. Raises SpecError for a name that is not known.
    """
    if shards < 1:
        raise SpecError(f"--shards is {shards}, expected at least 1")
    specs: list[DatasetSpec] = []
    bad: list[Finding] = []
    for name in datasets or list(config.datasets):
        try:
            specs.append(find_dataset(name, config))
        except SpecError as e:
            if datasets:
                raise
            bad.append(Finding(f"data set {name}", "act", str(e), f"$EDITOR {config.path}"))
    report("looking at this machine")
    found = [*look_at_machine(scores), *bad, *look_at_stores(specs, scores)]
    if not specs and not bad:
        found.append(Finding("data sets", "note", "none is named in curate.toml", "curate prepare digits"))
    for spec in specs:
        report(f"looking at data set '{spec.name}'")
        found += look_at_data(spec, shards)
        try:
            found += look_at_tables(spec, scores, config)
        except CurateError as e:
            found.append(Finding(f"score tables of {spec.name}", "act", str(e), f"curate doctor --dataset {spec.name}"))
    return found
