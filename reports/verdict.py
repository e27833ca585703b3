"""The result of a comparison in one sentence, and names of quality measures for people."""

from __future__ import annotations

from itertools import pairwise

from ..ledger import BASELINE, REGIMES
from ..units import counted
from .content import Analysis

QUALITIES = {
    "top1": "top-1 accuracy",
    "zero_shot_top1": "zero-shot top-1 accuracy",
    "image_to_text_r1": "image-to-text recall@1",
    "mean_recall": "mean recall (R@1, 5, 10, both ways)",
}


def verdict(analysis: Analysis) -> str:
    """What the policy that was named before the runs saved at the budget named with it, and whether its interval shows that.

    A loss is called a loss. Where the quality is outside uniform's ladder, the sentence gives the bound that is known.
    """
    row = analysis.headline
    if row is None:
        if analysis.policies == (BASELINE,):
            return f"Only {BASELINE} was run, so there are no savings to report."
        return f"{BASELINE.capitalize()} was run at one budget only, so savings cannot be computed."
    who = f"{row.policy} at {analysis.multiple(row.budget_flops)}"
    updates = row.learner_updates.spoken("fewer", "more") + " learner updates"
    compute = row.foundation.spoken("less", "more") + " total compute"
    took = f"{updates} and {compute}"
    n = row.quality.n
    seeds = f"{REGIMES['foundation']}; n = {counted(n, 'seed')}"
    sure = f"90 % interval of the compute saved: {row.foundation.interval}; {seeds}"
    if row.foundation.interval is None:
        said = f"No saving shown: one seed gives no interval. {who} took {took} at {BASELINE}'s quality ({seeds})."
    elif row.foundation.shows == "gain":
        said = f"{who} reaches {BASELINE}'s quality with {took} ({sure})."
    elif row.foundation.shows == "loss":
        said = f"{who} costs more than {BASELINE}: the same quality took {took} ({sure})."
    else:
        said = (
            f"No saving shown: {who} took {took} at {BASELINE}'s quality, and the interval does not exclude 0 ({sure})."
        )
    if row.foundation.where == "above":
        said += " A longer --ladder would show how much."
    if _quality_falls(analysis):
        said += f" {BASELINE.capitalize()}'s quality falls between two budgets; savings use the first that reaches a quality."
    return said + _others(analysis)


def _others(analysis: Analysis) -> str:
    """What else was looked at: the other policies at the same budget, and how many rows there are in all."""
    policies, pairs = len(analysis.policies) - 1, len(analysis.savings)
    looked = "1 policy" if policies == 1 else f"{policies} policies"
    named = " Policy and budget were named before the runs. "
    named += f"Looked at: {looked}, {counted(pairs, 'pair')} of policy and budget."
    others = [row for row in analysis.at_headline if row.policy != analysis.headline_policy]
    words = {"gain": "a saving", "loss": "costs more", "": "no saving shown"}
    said = [f"{row.policy} {words[row.foundation.shows]} ({row.foundation.interval})" for row in others]
    if analysis.seeds[1:] and said:
        named += f" Others at {analysis.multiple(analysis.headline_budget)}: {'; '.join(said)}."
    return named


def _quality_falls(analysis: Analysis) -> bool:
    """Whether uniform ever gets worse with more compute. Then several budgets have the same quality."""
    means = [rung.quality.mean for rung in analysis.curves[BASELINE]]
    return any(a > b for a, b in pairwise(means))


def quality_name(quality: str) -> str:
    return QUALITIES.get(quality, quality)
