"""The result of a comparison in one sentence, and names of quality measures for people."""

from __future__ import annotations

from itertools import pairwise

from ..ledger import BASELINE, REGIMES
from .content import Analysis

QUALITIES = {
    "top1": "top-1 accuracy",
    "zero_shot_top1": "zero-shot top-1 accuracy",
    "image_to_text_r1": "image-to-text recall@1",
    "mean_recall": "mean recall (R@1, 5, 10, both ways)",
}


def verdict(analysis: Analysis) -> str:
    """The policy that saves most, how much, in which regime and over how many seeds. A loss is called a loss.

    Where the quality is outside uniform's ladder, the sentence gives the bound that is known.
    """
    best = analysis.headline
    if best is None:
        if analysis.policies == (BASELINE,):
            return f"Only {BASELINE} was run, so there are no savings to report."
        return f"{BASELINE.capitalize()} was run at one budget only, so savings cannot be computed."
    who = f"{best.policy} at {analysis.multiple(best.budget_flops)}"
    n = best.quality.n
    seeds = f"n = {n} seed{'s' * (n != 1)}"
    compute = best.foundation
    updates_words, compute_words = best.learner_updates.spoken("fewer", "more"), compute.spoken("less", "more")
    if compute.gained:
        said = (
            f"{who} reaches {BASELINE}'s quality with {updates_words} learner updates and {compute_words} "
            f"total compute ({REGIMES['foundation']}; {seeds})."
        )
    elif compute.where == "above":
        said = (
            f"{who} is better than {BASELINE} at its largest budget; at equal quality it takes {compute_words} total "
            f"compute ({REGIMES['foundation']}; {seeds}). A longer --ladder would show how much."
        )
    elif compute.where == "below":
        said = (
            f"No policy is known to have saved total compute: the best, {who}, is worse than {BASELINE} at its smallest "
            f"budget; at equal quality it takes {compute_words} total compute ({REGIMES['foundation']}; {seeds})."
        )
    else:
        said = (
            f"No policy saved total compute: the best, {who}, took {compute_words} at equal quality, with {updates_words} "
            f"learner updates ({REGIMES['foundation']}; {seeds})."
        )
    if _quality_falls(analysis):
        said += f" {BASELINE.capitalize()}'s quality falls between two budgets; savings use the first that reaches a quality."
    return said


def _quality_falls(analysis: Analysis) -> bool:
    """Whether uniform ever gets worse with more compute. Then several budgets have the same quality."""
    means = [rung.quality.mean for rung in analysis.curves[BASELINE]]
    return any(a > b for a, b in pairwise(means))


def quality_name(quality: str) -> str:
    return QUALITIES.get(quality, quality)
