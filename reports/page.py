"""A comparison as one HTML file. Plots are inline, and nothing is fetched or scripted, so the file opens from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ..ledger import BASELINE, REGIMES
from ..units import accuracy, counted, format_flops, percent
from .arms import Arm, arms_table
from .content import COSTS, Analysis, Comparison
from .page_style import document, inline_svg
from .tables import equal_table, ledger_table, savings_table, search_table
from .verdict import quality_name

TITLES = {
    "quality_over_updates": "Quality over learner updates",
    "quality_over_flops": "Quality over total FLOPs",
    "quality_over_seconds": "Quality over seconds",
    "ledger": "Cost of a run at 1x, by ledger line",
    "wrong_labels": "Share of wrong labels among the selected",
    "distributions": "Losses and scores of selected and not selected examples",
}
REGIME_WORDS = {
    "fully_amortised": "counts learner train only: many runs reuse one selected sequence of examples.",
    "foundation": "adds online score and online train: the reference's scores come with the data set. The usual case.",
    "pretrained_reference": "adds reference score: one pass of the reference model over the data set.",
    "nothing_amortised": "adds reference train: this one run pays for everything.",
}


def page(comparison: Comparison, plots: Mapping[str, str], sheets: str = "", arms: Sequence[Arm] = ()) -> str:
    """The HTML of a comparison. `plots` are the SVG texts by name, `sheets` is HTML, `arms` are those of `read_arms`."""
    analysis = comparison.analysis
    title = f"curate compare: {', '.join(analysis.policies)} on {comparison.dataset}"
    first, _, more = comparison.verdict.partition(". ")
    return document(
        title,
        f"""<div id="verdict"><p class="verdict">{escape(first.removesuffix("."))}.</p>
<p>{escape(more)}</p></div>
{_tiles(analysis)}
{arms_table(arms, comparison) if arms else ""}
<h2>Savings at equal quality</h2>
<p class="note">Share of {BASELINE}'s cost that a policy saves at the same quality. It is interpolated between {BASELINE}'s
complete runs and never extrapolated: &gt; (more than) where the quality is above that of {BASELINE}'s budgets, ≤ (at most)
where it is below. A negative saving is a loss. {_sure(analysis)}</p>
{savings_table(analysis)}
<h2>Quality over cost</h2>
<p class="note">Every point is a complete run: its learning rate decays to zero within its own budget. Lines: mean over seeds;
bands: least to greatest; dots: seeds.</p>
<div class="plots">
{_figures(plots, ("quality_over_updates", "quality_over_flops", "quality_over_seconds"))}
</div>
<h2>Quality at equal cost</h2>
<p class="note">Each row is the cost of one of {BASELINE}'s budgets. ≈ marks a value that is interpolated between complete runs,
linearly in log cost; &ndash; means that the cost is outside the range of the policy's runs. Small figures: least and greatest
over seeds. Bold: best of the row.</p>
{"".join(equal_table(analysis, cost) for cost in COSTS)}
<h2>Where the FLOPs go</h2>
{_figures(plots, ("ledger",), wide=True)}
{ledger_table(analysis)}
<h2>What was selected</h2>
{_selected(comparison, plots)}
{_kept_and_dropped(sheets)}
<h2>How this was made</h2>
{_made(comparison)}
""",
    )


def _tiles(analysis: Analysis) -> str:
    """Figures of the headline's policy: three savings, and quality at two equal costs."""
    best = analysis.headline
    if best is None:
        return ""
    tiles = []
    savings = {"fewer learner updates": best.learner_updates}
    for name in ("foundation", "nothing_amortised"):
        if (known := best.total_compute[name]) is not None:
            savings[f"less total compute, {REGIMES[name]}"] = known
    for words, saving in savings.items():
        between = saving.between if saving.interval is None else f"saved: {saving.between}"
        shown = percent(-saving.share) if saving.lost else saving.short
        words = words.replace("fewer", "more").replace("less", "more") if saving.lost else words
        tiles.append((shown, words, f"at equal quality; {between}", saving.shows == "gain"))
    for cost in ("total_flops", "seconds"):
        row = next((r for r in analysis.equal[cost] if r.budget_flops == best.budget_flops), None)
        if row is not None and best.policy in row.quality:
            mine, base = row.quality[best.policy].mean, row.quality[BASELINE].mean
            words = f"{quality_name(analysis.quality)} at equal {COSTS[cost]}"
            tiles.append((accuracy(mine), words, f"{BASELINE}: {accuracy(base)}", False))
    cells = "".join(
        f'<div class="tile"><b{" class=gain" * good}>{escape(figure)}</b><span>{escape(words)}</span>'
        f"<small>{escape(small)}</small></div>"
        for figure, words, small, good in tiles
    )
    at = f"{best.policy} at {analysis.multiple(best.budget_flops)}"
    return f'<p class="note">{escape(at)}:</p>\n<div class="tiles">{cells}</div>'


def _sure(analysis: Analysis) -> str:
    """How sure the savings are, and how many of them chance alone would show."""
    if len(analysis.seeds) < 2:
        return "One seed was run, so there are no intervals and nothing is shown to be saved."
    return (
        f"Small figures: 90 % interval over {len(analysis.seeds)} seeds, both sides paired by seed; coloured where it excludes "
        "0. If nothing were saved anywhere, about one in twenty of these rows would still show a saving."
    )


def _figures(plots: Mapping[str, str], names: Iterable[str], wide: bool = False) -> str:
    return "\n".join(
        f'<figure id="{name}"{" class=one" * wide}><figcaption>{TITLES[name]}</figcaption>'
        f'<div class="scroll">{inline_svg(name, plots[name], TITLES[name])}</div></figure>'
        for name in names
        if name in plots
    )


def _selected(comparison: Comparison, plots: Mapping[str, str]) -> str:
    if not comparison.selection:
        return f"<p>No selections were recorded: only {BASELINE} has a run of the first seed at 1x.</p>"
    missing = ""
    if "wrong_labels" not in plots:
        missing = '<p class="note">Wrong labels are not shown: the clean labels of this data set are not known.</p>'
    return f"""<p class="note">The first seed's runs at 1x. Clean labels are used for this analysis only, never for training.
Distributions: share of each group's examples by bin; the outermost bins also count what is below the 0.5 % and above the
99.5 % quantile.</p>
{missing}{_figures(plots, ("wrong_labels", "distributions"), wide=True)}"""


def _kept_and_dropped(sheets: str) -> str:
    if not sheets:
        return ""
    return f"""<h3>Kept and dropped</h3>
<p class="note">A random sample of what the first seed's run at 1x kept and dropped in the last quarter of its steps.</p>
<div id="sheets">{sheets}</div>"""


def _made(comparison: Comparison) -> str:
    analysis, made = comparison.analysis, comparison.made
    regimes = "".join(f"<li><b>{name}</b> {escape(REGIME_WORDS[key])}</li>" for key, name in REGIMES.items())
    budgets = sorted({rung.budget_flops for curve in analysis.curves.values() for rung in curve})
    facts = {
        "data set": f"{comparison.dataset}: {made.description}" if made.description else comparison.dataset,
        "seeds": ", ".join(map(str, analysis.seeds)),
        "budgets": ", ".join(f"{analysis.multiple(b)} ({format_flops(b)})" for b in budgets),
        "hardware": "; ".join(made.hardware),
        "versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()),
        "precision": ", ".join(made.precision),
        "operators without FLOPs": ", ".join(made.operators_not_counted) or "none",
        "learning rate": ", ".join(f"{rate:g} at {x:g}x" for x, rate in comparison.learning_rates.items())
        if len(set(comparison.learning_rates.values())) > 1
        else f"{comparison.learning_rates[1.0]:g}",
    }
    varied = ("dataset", "lr", "seed", "policy", "name")
    chosen = {k: v for k, v in comparison.settings.items() if v is not None and k not in varied}
    return f"""<ul>
<li>Every point is a complete run: its learning rate rises and decays to zero within its own budget. No point is a snapshot
of a longer run.</li>
<li>All policies train with {BASELINE}'s learning rate; {counted(len(analysis.seeds), "seed")} for each point.</li>
<li>FLOPs = 2 &times; multiply-adds, measured once on the shapes that were used. A budget pays for learner train, online score
and online train. Seconds are training time without evaluation.</li>
<li>Values are interpolated between complete runs, linearly in log cost, and never extrapolated.</li>
</ul>
<h3>The four regimes of total compute</h3>
<ul>{regimes}</ul>
{search_table(comparison)}
<h3>Setting</h3>
{_definitions(facts)}
<h3>Options of all runs</h3>
{_definitions(chosen)}"""


def _definitions(facts: Mapping[str, object]) -> str:
    rows = "".join(f"<dt>{escape(str(k).replace('_', ' '))}</dt><dd>{escape(_value(v))}</dd>" for k, v in facts.items())
    return f"<dl>{rows}</dl>"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
