"""What a comparison says in a sentence, and its measures' names for people."""

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
    """Who saved most, how much, in which regime and on how many seeds; a loss is called one.

    What lies off uniform's ladder is told as the bound that is known.
    """
    best = analysis.headline
    if best is None:
        if analysis.policies == (BASELINE,):
            return f"Only {BASELINE} was run, so nothing can be said of savings."
        return f"{BASELINE.capitalize()} was run at one budget only, so nothing can be said of savings."
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
            f"Off the ladder: {who} beats {BASELINE}'s largest budget; to that quality it took {compute_words} total "
            f"compute ({REGIMES['foundation']}; {seeds}), and more cannot be said without a longer ladder."
        )
    elif compute.where == "below":
        said = (
            f"No policy is known to have saved total compute: the best, {who}, stayed below the quality of "
            f"{BASELINE}'s smallest budget, and took {compute_words} of it ({REGIMES['foundation']}; {seeds})."
        )
    else:
        said = (
            f"No policy saved total compute: the best, {who}, took {compute_words} of it for {BASELINE}'s quality, "
            f"with {updates_words} learner updates ({REGIMES['foundation']}; {seeds})."
        )
    if _quality_falls(analysis):
        said += f" {BASELINE.capitalize()}'s quality falls between two of its budgets: read its first passing."
    return said


def _quality_falls(analysis: Analysis) -> bool:
    """Whether more compute ever made uniform worse, which makes 'equal quality' ambiguous."""
    means = [rung.quality.mean for rung in analysis.curves[BASELINE]]
    return any(a > b for a, b in pairwise(means))


def quality_name(quality: str) -> str:
    return QUALITIES.get(quality, quality)
