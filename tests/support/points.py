"""Points of a comparison with known costs."""

from __future__ import annotations

from curate.reports.content import Point


def point(policy, budget, quality, *, seed=0, scoring=0.0, reference=0.0):
    """A learner whose update costs 1 FLOP and 2 seconds; `scoring` more FLOPs an update; a reference's two lines."""
    updates = budget / (1 + scoring)
    return Point(
        run=f"{policy}-{budget}-{seed}",
        policy=policy,
        budget_flops=budget,
        seed=seed,
        quality=quality,
        costs={"learner_updates": updates, "total_flops": budget, "seconds": 2 * updates},
        filter_ratio=0.5,
        lr=1e-3,
        lines={
            "learner_train": updates,
            "online_score": scoring * updates,
            "online_train": 0.0,
            "reference_score": reference,
            "reference_train": reference,
        },
        regimes={
            "fully_amortised": updates,
            "foundation": budget,
            "pretrained_reference": budget + (reference or 0.0),
            "nothing_amortised": None if reference is None else budget + 2 * reference,
        },
    )
