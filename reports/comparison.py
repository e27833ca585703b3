"""Write the folder of a comparison: points.parquet, comparison.json, plots and index.html. Reads run folders only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.spec import DatasetSpec
from ..datasets.writing import whole_file, write_whole
from ..errors import RunError, WriteError
from ..units import Report
from .analysis import analyse
from .arms import read_arms
from .contact_sheet import contact_sheets, sheets_html
from .content import Comparison, Made, Point
from .page import page
from .plots import draw
from .points import read_points
from .selected import selection
from .verdict import verdict


class Compared(Protocol):
    """What was run, from `curate.studies`: the names of the runs' folders, the measure of quality, the budget of 1x, what the
    headline is read at, the learning rates and their search, and the options that all runs share."""

    @property
    def runs(self) -> Sequence[str]: ...
    @property
    def quality(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def budget_flops(self) -> float: ...
    @property
    def headline_budget(self) -> float: ...
    @property
    def headline_policy(self) -> str | None: ...
    @property
    def learning_rates(self) -> Mapping[float, float]: ...
    @property
    def search(self) -> Mapping[float, Sequence[tuple[float, float]]]: ...
    @property
    def searched_on(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, object]: ...


def write_folder(
    folder: str,
    compared: Compared,
    dataset: DatasetSpec,
    datasets: Mapping[str, Mapping[str, str]],
    *,
    report: Report = print,
) -> str:
    """Write points.parquet, comparison.json, plots/ and index.html beside `runs/`; returns the page's path.

    `dataset` is the training set, for the images of what was kept and dropped. `datasets` has the `analysis` files of
    curate.toml, which may hold what training must not see. Raises RunError where a run is damaged or the folder cannot
    be written.
    """
    root = Path(folder)
    found = read_points([root / "runs" / name for name in compared.runs], compared.quality)
    analysis = analyse(
        found,
        compared.quality,
        compared.budget_flops,
        headline_budget=compared.headline_budget * compared.budget_flops,
        headline_policy=compared.headline_policy,
    )
    comparison = Comparison(
        analysis=analysis,
        dataset=compared.dataset,
        learning_rates=compared.learning_rates,
        search=compared.search,
        searched_on=compared.searched_on,
        settings=compared.settings,
        selection=selection(root, found, compared.budget_flops, datasets),
        made=_made(root, found),
        verdict=verdict(analysis),
    )
    index = root / "index.html"
    try:
        write_points(found, root / "points.parquet")
        write_comparison(comparison, root / "comparison.json")
        sheets = contact_sheets(root, found, compared.budget_flops, dataset)
        arms = read_arms(root, found, compared.budget_flops)
        text = page(comparison, draw(comparison, found, root / "plots"), sheets_html(sheets), arms)
        write_whole(index, text.encode())
    except WriteError as e:
        raise RunError(f"{e}, or choose another --out") from e
    for said in (*comparison.edges, comparison.verdict):
        report(said)
    return str(index)


def _made(root: Path, found: Sequence[Point]) -> Made:
    """Hardware, precision and versions, from the runs' manifests."""
    manifests = []
    for point in found:
        path = root / "runs" / point.run / "manifest.json"
        try:
            manifests.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as e:
            raise RunError(f"{path}: is missing or damaged ({e}); delete the folder and compare again") from None

    def seen(values: Iterable[Any]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(value) for value in values))

    versions = [m.get("versions") or {} for m in manifests]
    return Made(
        hardware=seen(m.get("hardware") for m in manifests),
        precision=seen(m.get("precision") for m in manifests),
        versions={
            name: " and ".join(seen(v.get(name) for v in versions))
            for name in dict.fromkeys(k for v in versions for k in v)
        },
        operators_not_counted=tuple(sorted({n for m in manifests for n in m.get("operators_not_counted") or ()})),
        description=str((manifests[0].get("dataset") or {}).get("description") or ""),
    )


def write_points(found: Sequence[Point], path: Path) -> None:
    """All points as Parquet."""
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist([point.to_dict() for point in found]), partial)


def write_comparison(comparison: Comparison, path: Path) -> None:
    write_whole(path, (json.dumps(comparison.to_dict(), indent=2) + "\n").encode())
