"""What a comparison says in a sentence, and the words and figures that the page, the plots and the terminal share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..ledger import BASELINE, REGIMES
from ..units import percent

COSTS = {"learner_updates": "learner updates", "total_flops": "total FLOPs", "seconds": "seconds"}
QUALITIES = {
    "top1": "top-1 accuracy",
    "zero_shot_top1": "zero-shot top-1 accuracy",
    "image_to_text_r1": "image-to-text recall@1",
    "mean_recall": "mean recall (R@1, 5, 10, both ways)",
}
MARKS = {"on": "", "above": "> ", "below": "≤ "}


def verdict(content: Mapping[str, Any]) -> str:
    """Who saved most, how much, in which regime and on how many seeds; a loss is called one.

    `content` is comparison.json's. What lies off uniform's ladder is told as the bound that is known.
    """
    best = content["headline"]
    if best is None:
        if list(content["policies"]) == [BASELINE]:
            return f"Only {BASELINE} was run, so nothing can be said of savings."
        return f"{BASELINE.capitalize()} was run at one budget only, so nothing can be said of savings."
    who = f"{best['policy']} at {multiple(best['budget_flops'], content)}"
    n = best["quality"]["n"]
    seeds = f"n = {n} seed{'s' * (n != 1)}"
    updates, compute = best["learner_updates"], best["total_compute"]["foundation"]
    updates_words, compute_words = spoken(updates, "fewer", "more"), spoken(compute, "less", "more")
    if gained(compute):
        said = (
            f"{who} reaches {BASELINE}'s quality with {updates_words} learner updates and {compute_words} "
            f"total compute ({REGIMES['foundation']}; {seeds})."
        )
    elif compute["where"] == "above":
        said = (
            f"Off the ladder: {who} beats {BASELINE}'s largest budget; to that quality it took {compute_words} total "
            f"compute ({REGIMES['foundation']}; {seeds}), and more cannot be said without a longer ladder."
        )
    elif compute["where"] == "below":
        said = (
            f"No policy is known to have saved total compute: the best, {who}, stayed below the quality of "
            f"{BASELINE}'s smallest budget, and took {compute_words} of it ({REGIMES['foundation']}; {seeds})."
        )
    else:
        said = (
            f"No policy saved total compute: the best, {who}, took {compute_words} of it for {BASELINE}'s quality, "
            f"with {updates_words} learner updates ({REGIMES['foundation']}; {seeds})."
        )
    if quality_falls(content):
        said += f" {BASELINE.capitalize()}'s quality falls between two of its budgets: read its first passing."
    return said


def gained(saving: Mapping[str, Any]) -> bool:
    """Whether a saving is known to be one: a bound from above is not."""
    return bool(saving["share"] > 0 and saving["where"] != "below")


def spoken(saving: Mapping[str, Any], less: str, more: str) -> str:
    """`71 % fewer`, `more than 71 % fewer`, `12 % more`, `at least 12 % more`: a loss turns the bound around."""
    share, where = saving["share"], saving["where"]
    if share >= 0:
        return {"on": "", "above": "more than ", "below": "at most "}[where] + f"{percent(share)} {less}"
    return {"on": "", "above": "less than ", "below": "at least "}[where] + f"{percent(-share)} {more}"


def short(saving: Mapping[str, Any]) -> str:
    """`71 %`, `> 71 %` (off the ladder's upper end), `≤ -12 %` (off its lower end)."""
    return MARKS[saving["where"]] + percent(saving["share"])


def spread(saving: Mapping[str, Any]) -> str:
    """Least and greatest saving over seeds, such as `60 % to > 71 %`; the one value where there is one seed."""
    low, high = (short(pick(saving["seeds"], key=lambda one: one["share"])) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def multiple(budget: float, content: Mapping[str, Any]) -> str:
    """A budget as a multiple of 1x."""
    return f"{budget / content['settings']['budget_flops']:g}x"


def quality_falls(content: Mapping[str, Any]) -> bool:
    """Whether more compute ever made uniform worse, which makes 'equal quality' ambiguous."""
    means: Sequence[float] = [rung["quality"]["mean"] for rung in content["curves"][BASELINE]]
    return any(a > b for a, b in pairwise(means))


def quality_name(content: Mapping[str, Any]) -> str:
    quality = str(content["quality"])
    return QUALITIES.get(quality, quality)
