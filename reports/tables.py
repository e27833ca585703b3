"""The tables of the comparison's page, as HTML. All text from outside is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ..ledger import BASELINE, LINES, REGIMES
from ..units import accuracy, format_flops
from .plots import colour
from .verdict import COSTS, gained, multiple, quality_name, short, spread

Content = Mapping[str, Any]
MISSING = "<td>&ndash;</td>"


def savings_table(content: Content) -> str:
    """Rows: policy and budget. Columns: learner updates, then total compute under the four regimes."""
    if not content["savings"]:
        return f"<p>Savings need another policy, and {BASELINE} at two budgets or more.</p>"
    bodies = []
    for policy in content["policies"]:
        rows = "".join(_savings_row(row, content) for row in content["savings"] if row["policy"] == policy)
        if rows:
            bodies.append(f'<tbody class="group">{rows}</tbody>')
    regimes = "".join(f"<th scope=col>{name.replace(' ', '<br>', 1)}</th>" for name in REGIMES.values())
    head = (
        "<thead><tr><th rowspan=2 scope=col>policy</th><th rowspan=2 scope=col>budget</th>"
        f"<th rowspan=2 scope=col>{escape(quality_name(content))}</th><th rowspan=2 scope=col>learner<br>updates saved</th>"
        f'<th colspan={len(REGIMES)} class="group" scope=colgroup>total compute saved, by regime</th></tr>'
        f"<tr>{regimes}</tr></thead>"
    )
    return _table("savings", "Saved at equal quality", head, "".join(bodies))


def _savings_row(row: Mapping[str, Any], content: Content) -> str:
    cells = [_saving(row["learner_updates"])]
    for name in REGIMES:
        cells.append(_saving(row["total_compute"][name], ours=name == "foundation"))
    return (
        f"<tr><td>{policy_name(row['policy'], content)}</td><td>{multiple(row['budget_flops'], content)}</td>"
        f"{_quality_cell(row['quality'])}{''.join(cells)}</tr>"
    )


def _saving(saving: Mapping[str, Any] | None, ours: bool = False) -> str:
    if saving is None:
        return '<td title="reference train is not known">&ndash;</td>'
    kind = "gain" if gained(saving) else "loss" if saving["share"] < 0 and saving["where"] != "above" else ""
    return (
        f"<td{' class=ours' * ours}><span class='{kind}'>{escape(short(saving))}</span>"
        f"<small>{escape(spread(saving))}</small></td>"
    )


def equal_table(content: Content, cost: str) -> str:
    """Every policy's quality at what each of uniform's budgets cost by one measure."""
    policies = content["policies"]
    heads = "".join(f"<th scope=col>{policy_name(p, content)}</th>" for p in policies)
    head = f"<thead><tr><th scope=col>{BASELINE}'s budget</th><th scope=col>{COSTS[cost]}</th>{heads}</tr></thead>"
    rows = []
    for row in content["equal"][cost]:
        means = [quality["mean"] for quality in row["quality"].values()]
        at = (
            format_flops(row[cost])
            if cost == "total_flops"
            else f"{row[cost]:,.4g}"
            if row[cost] < 1e3
            else f"{row[cost]:,.0f}"
        )
        cells = "".join(
            _quality_cell(row["quality"][p], best=len(means) > 1 and row["quality"][p]["mean"] == max(means))
            if p in row["quality"]
            else MISSING
            for p in policies
        )
        rows.append(f"<tr><td>{multiple(row['budget_flops'], content)}</td><td>{at}</td>{cells}</tr>")
    caption = f"{quality_name(content).capitalize()} at equal {COSTS[cost]}"
    return _table(f"equal_{cost}", caption, head, f"<tbody>{''.join(rows)}</tbody>")


def ledger_table(content: Content) -> str:
    """The ledger's five lines of every policy's runs at 1x, in FLOPs; and what evaluation does not enter."""
    heads = "".join(f"<th scope=col>{name}</th>" for name in LINES.values())
    rows = []
    for policy, curve in content["curves"].items():
        for rung in curve:
            if rung["budget_flops"] == content["settings"]["budget_flops"]:
                cells = "".join(
                    f"<td>{format_flops(rung[line]['mean'])}</td>" if rung[line] else "<td>not known</td>"
                    for line in LINES
                )
                updates, seconds = rung["learner_updates"]["mean"], rung["seconds"]["mean"]
                rows.append(
                    f"<tr><td>{policy_name(policy, content)}</td>{cells}<td>{updates:,.0f}</td><td>{seconds:,.4g}</td></tr>"
                )
    head = f"<thead><tr><th scope=col>policy</th>{heads}<th scope=col>learner updates</th><th scope=col>seconds</th></tr></thead>"
    return _table("ledger_table", "A run at 1x, mean over seeds", head, f"<tbody>{''.join(rows)}</tbody>")


def search_table(content: Content) -> str:
    """The learning rates that uniform tried at 1x."""
    if not content["search"]:
        return f"<p>The learning rate was given, {content['learning_rate']:g}, not searched.</p>"
    best = content["learning_rate"]
    rows = "".join(
        f"<tr{' class=best' * (rate == best)}><td>{rate:g}</td><td>{accuracy(quality)}</td></tr>"
        for rate, quality in content["search"]
    )
    head = f"<thead><tr><th scope=col>learning rate</th><th scope=col>{escape(quality_name(content))}</th></tr></thead>"
    caption = f"Learning-rate search: {BASELINE} at 1x, seed 0; all policies use the best"
    return _table("search", caption, head, f"<tbody>{rows}</tbody>")


def policy_name(policy: str, content: Content) -> str:
    shade = colour(policy, content["policies"])
    return f'<span class="swatch" style="background:{shade}"></span>{escape(policy)}'


def _quality_cell(quality: Mapping[str, Any], best: bool = False) -> str:
    about = "≈ " if quality.get("interpolated") else ""
    low_high = f"<small>{quality['min'] * 100:.1f} to {quality['max'] * 100:.1f}</small>" if quality["n"] > 1 else ""
    return f"<td><span{' class=best' * best}>{about}{accuracy(quality['mean'])}</span>{low_high}</td>"


def _table(name: str, caption: str, head: str, body: str) -> str:
    return f'<div class="scroll" tabindex="0"><table id="{name}"><caption>{escape(caption)}</caption>{head}{body}</table></div>'
