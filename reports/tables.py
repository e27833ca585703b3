"""The tables of the comparison's page, as HTML. Names from runs and settings are escaped."""

from __future__ import annotations

from html import escape

from ..ledger import BASELINE, LINES, REGIMES
from ..units import accuracy, format_flops
from .content import COSTS, Analysis, Comparison, SavingsRow, Spread, SpreadAt
from .interval import SeededSaving
from .plots import colour
from .verdict import quality_name

MISSING = "<td>&ndash;</td>"


def savings_table(analysis: Analysis) -> str:
    """Rows: policy and budget. Columns: learner updates, then total compute under the four regimes."""
    if not analysis.savings:
        return f"<p>No savings: they need a second policy, and {BASELINE} at two budgets or more.</p>"
    bodies = []
    for policy in analysis.policies:
        rows = "".join(_savings_row(row, analysis) for row in analysis.savings if row.policy == policy)
        if rows:
            bodies.append(f'<tbody class="group">{rows}</tbody>')
    measure = escape(quality_name(analysis.quality))
    regimes = "".join(f"<th scope=col>{name.replace(' ', '<br>', 1)}</th>" for name in REGIMES.values())
    head = (
        "<thead><tr><th rowspan=2 scope=col>policy</th><th rowspan=2 scope=col>budget</th>"
        f"<th rowspan=2 scope=col>{measure}</th><th rowspan=2 scope=col>learner<br>updates saved</th>"
        f'<th colspan={len(REGIMES)} class="group" scope=colgroup>total compute saved, by regime</th></tr>'
        f"<tr>{regimes}</tr></thead>"
    )
    return html_table("savings", "Saved at equal quality", head, "".join(bodies))


def _savings_row(row: SavingsRow, analysis: Analysis) -> str:
    cells = [_saving(row.learner_updates)]
    for name in REGIMES:
        cells.append(_saving(row.total_compute[name], ours=name == "foundation"))
    return (
        f"<tr><td>{policy_name(row.policy, analysis)}</td><td>{analysis.multiple(row.budget_flops)}</td>"
        f"{_quality_cell(row.quality)}{''.join(cells)}</tr>"
    )


def _saving(saving: SeededSaving | None, ours: bool = False) -> str:
    if saving is None:
        return '<td title="the cost of training the reference is not known">&ndash;</td>'
    interval = f"<small>{escape(str(saving.interval)) if saving.interval else 'one seed'}</small>"
    return f"<td{' class=ours' * ours}><span class='{saving.shows}'>{escape(saving.short)}</span>{interval}</td>"


def equal_table(analysis: Analysis, cost: str) -> str:
    """Every policy's quality at the cost of each of uniform's budgets."""
    heads = "".join(f"<th scope=col>{policy_name(p, analysis)}</th>" for p in analysis.policies)
    head = f"<thead><tr><th scope=col>{BASELINE}'s budget</th><th scope=col>{COSTS[cost]}</th>{heads}</tr></thead>"
    rows = []
    for row in analysis.equal[cost]:
        means = [quality.mean for quality in row.quality.values()]
        at = (
            format_flops(row.at)
            if cost == "total_flops"
            else _seconds(row.at)
            if cost == "seconds"
            else f"{row.at:,.0f}"
        )
        cells = "".join(
            _quality_cell(row.quality[p], best=len(means) > 1 and row.quality[p].mean == max(means))
            if p in row.quality
            else MISSING
            for p in analysis.policies
        )
        rows.append(f"<tr><td>{analysis.multiple(row.budget_flops)}</td><td>{at}</td>{cells}</tr>")
    caption = f"{quality_name(analysis.quality).capitalize()} at equal {COSTS[cost]}"
    return html_table(f"equal_{cost}", caption, head, f"<tbody>{''.join(rows)}</tbody>")


def ledger_table(analysis: Analysis) -> str:
    """The five ledger lines (FLOPs), learner updates and training seconds of every policy's runs at 1x."""
    heads = "".join(f"<th scope=col>{name}</th>" for name in LINES.values())
    rows = []
    for policy in analysis.policies:
        rung = analysis.rung(policy, analysis.budget_flops)
        if rung is not None:
            lines = [rung.lines[line] for line in LINES]
            cells = "".join(f"<td>{format_flops(line.mean) if line else 'not known'}</td>" for line in lines)
            updates, seconds = rung.costs["learner_updates"].mean, rung.costs["seconds"].mean
            rows.append(
                f"<tr><td>{policy_name(policy, analysis)}</td>{cells}<td>{updates:,.0f}</td><td>{_seconds(seconds)}</td></tr>"
            )
    head = f"<thead><tr><th scope=col>policy</th>{heads}<th scope=col>learner updates</th><th scope=col>seconds</th></tr></thead>"
    return html_table("ledger_table", "A run at 1x, mean over seeds", head, f"<tbody>{''.join(rows)}</tbody>")


def search_table(comparison: Comparison) -> str:
    """The learning rates that uniform tried, a table for each budget with a search."""
    rates = {f"{rate:g}" for rate in comparison.learning_rates.values()}
    if not comparison.search:
        return f"<p>The learning rate was set to {', '.join(sorted(rates))}, without a search.</p>"
    measure = escape(quality_name(comparison.analysis.quality))
    head = f"<thead><tr><th scope=col>learning rate</th><th scope=col>{measure}</th></tr></thead>"
    tables = []
    for multiple, tried in comparison.search.items():
        best = comparison.learning_rates[multiple]
        rows = "".join(
            f"<tr{' class=best' * (rate == best)}><td>{rate:g}</td><td>{accuracy(quality)}</td></tr>"
            for rate, quality in tried
        )
        whose = f"all runs at {multiple:g}x" if len(comparison.search) > 1 else "all runs"
        caption = f"Learning-rate search: {BASELINE} at {multiple:g}x, seed 0; {whose} use the best"
        tables.append(html_table(f"search-{multiple:g}x", caption, head, f"<tbody>{rows}</tbody>"))
    edges = "".join(f"<p>{escape(said.capitalize())}.</p>" for said in comparison.edges)
    return f"{''.join(tables)}<p class=note>Measured on {escape(comparison.searched_on)}.</p>{edges}"


def policy_name(policy: str, analysis: Analysis) -> str:
    shade = colour(policy, analysis.policies)
    return f'<span class="swatch" style="background:{shade}"></span>{escape(policy)}'


def _quality_cell(quality: Spread, best: bool = False) -> str:
    about = "≈ " if isinstance(quality, SpreadAt) and quality.interpolated else ""
    low_high = f"<small>{quality.min * 100:.1f} to {quality.max * 100:.1f}</small>" if quality.n > 1 else ""
    return f"<td><span{' class=best' * best}>{about}{accuracy(quality.mean)}</span>{low_high}</td>"


def html_table(name: str, caption: str, head: str, body: str) -> str:
    return f'<div class="scroll" tabindex="0"><table id="{name}"><caption>{escape(caption)}</caption>{head}{body}</table></div>'


def _seconds(seconds: float) -> str:
    """Three digits, and never fewer than the whole seconds."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
