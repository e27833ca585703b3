"""What each arm of a comparison is: its steps, batch, epochs, learning rate and seeds at 1x, from its run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..errors import RunError
from .content import Analysis, Comparison, Point
from .tables import html_table, policy_name


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A policy's runs at 1x. `super_batch` is what a batch is chosen from, None where nothing is chosen; `epochs` is how often
    the learner trains on an example, `drawn` how often one is drawn, both on average and None where a run does not know."""

    policy: str
    steps: int
    batch_size: int
    super_batch: int | None
    epochs: float | None
    drawn: float | None
    lr: float | None
    seeds: tuple[int, ...]


def read_arms(root: Path, found: Sequence[Point], budget: float) -> list[Arm]:
    """The arms in the order of their points. Raises RunError where a run's files are damaged."""
    arms = []
    for policy in dict.fromkeys(point.policy for point in found):
        points = [point for point in found if point.policy == policy and point.budget_flops == budget]
        if points:
            arms.append(_arm(root / "runs" / points[0].run, points))
    return arms


def _arm(run: Path, points: Sequence[Point]) -> Arm:
    try:
        b = int(json.loads((run / "config.json").read_text(encoding="utf-8"))["batch_size"])
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        steps, examples = int(summary["steps"]), (summary.get("counts") or {}).get("examples")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RunError(
            f"{run}: its summary.json or config.json is damaged ({e}); delete it and compare again"
        ) from None
    chooses = any((run / "selections").glob("*.parquet"))
    B = round(b / (1 - points[0].filter_ratio)) if chooses else b
    return Arm(
        policy=points[0].policy,
        steps=steps,
        batch_size=b,
        super_batch=B if chooses else None,
        epochs=steps * b / examples if examples else None,
        drawn=steps * B / examples if examples else None,
        lr=points[0].lr,
        seeds=tuple(sorted(point.seed for point in points)),
    )


def arms_table(arms: Sequence[Arm], comparison: Comparison) -> str:
    """A row for each arm, and how the learning rate was found."""
    heads = ("arm", "steps at 1x", "batch", "chosen from", "epochs trained", "epochs drawn", "learning rate", "seeds")
    head = "<thead><tr>" + "".join(f"<th scope=col>{name}</th>" for name in heads) + "</tr></thead>"
    rows = "".join(_row(arm, comparison.analysis) for arm in arms)
    table = html_table("arms", "What was compared", head, f"<tbody>{rows}</tbody>")
    return f"{table}\n<p class=note>{escape(_rate_found(comparison))}</p>"


def _row(arm: Arm, analysis: Analysis) -> str:
    cells = (
        f"{arm.steps:,}",
        f"{arm.batch_size:,}",
        f"{arm.super_batch:,}" if arm.super_batch else "all drawn",
        *("not known" if epochs is None else f"{epochs:.3g}" for epochs in (arm.epochs, arm.drawn)),
        "not known" if arm.lr is None else f"{arm.lr:g}",
        f"{len(arm.seeds)} ({', '.join(map(str, arm.seeds))})",
    )
    return f"<tr><td>{policy_name(arm.policy, analysis)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _rate_found(comparison: Comparison) -> str:
    if not comparison.search:
        return "The learning rate was set for all arms, without a search."
    tried = comparison.search.get(1.0) or next(iter(comparison.search.values()))
    rates = ", ".join(f"{rate:g}" for rate, _ in tried)
    own = ", at each budget" if len(comparison.search) > 1 else ""
    return (
        f"The learning rate is the best of {rates} for uniform, seed 0{own}, measured on {comparison.searched_on}; no other arm "
        "was searched for."
    )
