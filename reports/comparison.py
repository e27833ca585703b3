"""What a comparison's runs say: points, quality at equal cost, savings at equal quality. Reads run folders only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.spec import DatasetSpec
from ..datasets.writing import whole_file, write_whole
from ..errors import RunError, WriteError
from ..ledger import BASELINE, LINES, REGIMES
from ..units import Report
from .contact_sheet import contact_sheets, sheets_html
from .page import page
from .plots import draw
from .savings import quality_at, saving
from .selected import selection
from .verdict import COSTS, verdict


def points(runs: Iterable[Path], quality: str) -> list[dict[str, Any]]:
    """One point a finished run: policy, budget, seed, quality, and what it cost by every measure.

    `total_flops` is what the budget counts (learner train + online score + online train: the foundation regime);
    `seconds` are of training, without evaluation. Raises RunError where a run's files are missing or damaged.
    """
    return [_point(run, quality) for run in runs]


def _point(run: Path, quality: str) -> dict[str, Any]:
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return {
            "run": run.name,
            "policy": summary["policy"],
            "budget_flops": config["budget_flops"],
            "seed": summary["seed"],
            "quality": summary["quality"][quality],
            "learner_updates": summary["steps"],
            "total_flops": summary["regimes"]["foundation"],
            "seconds": summary["seconds"]["total"] - summary["seconds"].get("evaluate", 0.0),
            "filter_ratio": config["filter_ratio"],
            "lr": config["lr"],
            **{line: summary["ledger"][line] for line in LINES},
            **{f"regime_{name}": summary["regimes"][name] for name in REGIMES},
        }
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RunError(
            f"{run}: its summary.json or config.json is missing or damaged ({e}); delete the folder and compare again"
        ) from None


def analyse(found: Sequence[dict[str, Any]], quality: str) -> dict[str, Any]:
    """All of comparison.json that follows from the points: `curves`, `equal`, `savings`, `headline`.

    Every mean is over seeds and stands with its least and greatest value and n. Savings are read on uniform's ladder
    of mean quality; their spread puts every seed's own quality on that same ladder.
    """
    curves = _curves(found)
    if BASELINE not in curves:
        raise RunError(f"no run of policy {BASELINE} among the points: nothing to compare with")
    savings = _savings(found, curves)
    return {
        "quality": quality,
        "policies": list(curves),
        "seeds": sorted({p["seed"] for p in found}),
        "curves": curves,
        "equal": {cost: _equal(curves, cost) for cost in COSTS},
        "savings": savings,
        "headline": _headline(savings),
    }


def _curves(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Per policy, by ascending budget: spreads over seeds of quality and of every cost."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for policy in dict.fromkeys(p["policy"] for p in found):
        budgets = sorted({p["budget_flops"] for p in found if p["policy"] == policy})
        curves[policy] = []
        for budget in budgets:
            same = [p for p in found if p["policy"] == policy and p["budget_flops"] == budget]
            measures = ["quality", *COSTS, *LINES, *(f"regime_{name}" for name in REGIMES)]
            curves[policy].append({"budget_flops": budget, **{m: _spread([p[m] for p in same]) for m in measures}})
    return curves


def _spread(values: Sequence[float | None]) -> dict[str, float | int] | None:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    return {"mean": statistics.fmean(known), "min": min(known), "max": max(known), "n": len(known)}


def _line(curve: Sequence[dict[str, Any]], measure: str) -> list[float]:
    return [rung[measure]["mean"] for rung in curve]


def _equal(curves: dict[str, list[dict[str, Any]]], cost: str) -> list[dict[str, Any]]:
    """Every policy's quality at what each of uniform's rungs cost. `interpolated` where no run stood just there."""
    rows = []
    for rung in curves[BASELINE]:
        at = rung[cost]["mean"]
        row: dict[str, Any] = {"budget_flops": rung["budget_flops"], cost: at, "quality": {}}
        for policy, curve in curves.items():
            same = [r for r in curve if cost == "total_flops" and r["budget_flops"] == rung["budget_flops"]]
            if policy == BASELINE or same:
                row["quality"][policy] = {**(same or [rung])[0]["quality"], "interpolated": False}
                continue
            mean = quality_at(_line(curve, cost), _line(curve, "quality"), at)
            if mean is not None:
                low, high = (
                    quality_at(_line(curve, cost), [r["quality"][x] for r in curve], at) for x in ("min", "max")
                )
                n = min(r["quality"]["n"] for r in curve)
                row["quality"][policy] = {"mean": mean, "min": low, "max": high, "n": n, "interpolated": True}
        rows.append(row)
    return rows


def _savings(found: Sequence[dict[str, Any]], curves: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a policy and budget: the saving in learner updates, and in total compute under every regime."""
    ladder = curves[BASELINE]
    qualities = _line(ladder, "quality")
    uniform = {"learner_updates": _line(ladder, "learner_updates"), "flops": _line(ladder, "learner_train")}
    rows = []
    if len(ladder) < 2:
        return []
    for policy, curve in curves.items():
        if policy == BASELINE:
            continue
        for rung in curve:
            reached_by = [
                p["quality"] for p in found if p["policy"] == policy and p["budget_flops"] == rung["budget_flops"]
            ]

            def row(cost: float, costs: list[float], by_seed: list[float] = reached_by, rung: Any = rung) -> Any:
                whole = saving(cost, costs, qualities, rung["quality"]["mean"])
                seeds = [saving(cost, costs, qualities, q) for q in by_seed]
                return {**whole.to_dict(), "seeds": [s.to_dict() for s in seeds]}

            regimes = {name: rung[f"regime_{name}"] for name in REGIMES}
            rows.append(
                {
                    "policy": policy,
                    "budget_flops": rung["budget_flops"],
                    "quality": rung["quality"],
                    "learner_updates": row(rung["learner_updates"]["mean"], uniform["learner_updates"]),
                    "total_compute": {
                        name: None if cost is None else row(cost["mean"], uniform["flops"])
                        for name, cost in regimes.items()
                    },
                }
            )
    return rows


def _headline(savings: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The policy and budget of the largest saving of total compute in the foundation regime, be it a loss.

    "More than" counts as what it is more than; "at most" only where nothing else is known.
    """
    known = [row for row in savings if row["total_compute"]["foundation"]["where"] != "below"]
    candidates = known or list(savings)
    return max(candidates, key=lambda row: row["total_compute"]["foundation"]["share"], default=None)


def write_folder(
    folder: str,
    compared: dict[str, Any],
    dataset: DatasetSpec,
    datasets: Mapping[str, Mapping[str, Any]],
    *,
    report: Report = print,
) -> str:
    """Write points.parquet, comparison.json, plots/ and index.html beside `runs/`; returns the page's path.

    `compared` says what was run: `runs` (names of folders), `quality` (the measure), `learning_rate`, `search` and
    `settings`. `dataset` is the one trained on, for pictures of what was kept and dropped; `datasets` are curate.toml's
    tables, for those that know more than training may.
    """
    root = Path(folder)
    found = points([root / "runs" / name for name in compared["runs"]], compared["quality"])
    content = {
        **analyse(found, compared["quality"]),
        **{k: compared[k] for k in ("learning_rate", "search", "settings")},
        "selection": selection(root, found, compared["settings"]["budget_flops"], datasets),
        "made": _made(root, found),
    }
    content["verdict"] = verdict(content)
    index = root / "index.html"
    try:
        write_points(found, root / "points.parquet")
        write_comparison(content, root / "comparison.json")
        sheets = contact_sheets(root, found, compared["settings"]["budget_flops"], dataset)
        text = page(content, draw(content, found, root / "plots"), sheets_html(sheets))
        write_whole(index, text.encode())
    except WriteError as e:
        raise RunError(f"{e}, or choose another --out") from e
    report(content["verdict"])
    return str(index)


def _made(root: Path, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """On what and with what the runs were made, from their manifests; where these differ, all that was seen."""
    manifests = []
    for point in found:
        path = root / "runs" / point["run"] / "manifest.json"
        try:
            manifests.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as e:
            raise RunError(f"{path}: is missing or damaged ({e}); delete the folder and compare again") from None

    def seen(values: Iterable[Any]) -> list[str]:
        return list(dict.fromkeys(str(value) for value in values))

    versions = [m.get("versions") or {} for m in manifests]
    return {
        "hardware": seen(m.get("hardware") for m in manifests),
        "precision": seen(m.get("precision") for m in manifests),
        "versions": {
            name: " and ".join(seen(v.get(name) for v in versions))
            for name in dict.fromkeys(k for v in versions for k in v)
        },
        "operators_not_counted": sorted({name for m in manifests for name in m.get("operators_not_counted") or ()}),
        "description": str((manifests[0].get("dataset") or {}).get("description") or ""),
    }


def write_points(found: Sequence[dict[str, Any]], path: Path) -> None:
    """All points as Parquet."""
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(found)), partial)


def write_comparison(content: dict[str, Any], path: Path) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
