"""Scores: larger is more worth training on. Pure functions of per-example losses [B].

`scale` multiplies the losses: 1 for cross-entropy; a dot product lies in [-1, 1] and needs more for softmax sampling
to tell examples apart.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

Policy = Literal["uniform", "hard-learner", "easy-reference", "learnability", "rho", "jest", "jest-easy", "acid"]
POLICIES: tuple[str, ...] = get_args(Policy)
# Those that choose pairs for what they teach together (joint.py), from the reference's stored embeddings.
JOINT = frozenset({"jest", "jest-easy", "acid"})
NEEDS_ONLINE_MODEL = frozenset({"hard-learner", "learnability"})
# Where these are given no online model, the learner itself scores.
TAKES_ONLINE_MODEL = NEEDS_ONLINE_MODEL | {"jest", "acid"}
NEEDS_ONLINE_LOSS = TAKES_ONLINE_MODEL | {"rho"}
NEEDS_REFERENCE = JOINT | {"easy-reference", "learnability", "rho"}


def hard_learner(online_loss_B: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """`loss(x | online)`."""
    return scale * online_loss_B


def easy_reference(reference_loss_B: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """`-loss(x | reference)`: does not look at the learner at all."""
    return -scale * reference_loss_B


def learnability(online_loss_B: torch.Tensor, reference_loss_B: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """`loss(x | online) - loss(x | reference)`: not yet learned, and possible to learn.

    With the learner itself as the online model this is RHO-LOSS (arXiv 2206.07137); with a small one that trains
    beside the learner it is ClassAct and ActiveCLIP (arXiv 2312.05328, equation 3).
    """
    return scale * (online_loss_B - reference_loss_B)


def score(
    policy: str,
    online_loss_B: torch.Tensor | None,
    reference_loss_B: torch.Tensor | None,
    *,
    scale: float = 1.0,
) -> torch.Tensor:
    """The score of a policy other than `uniform`. Raises ValueError where a loss that it needs is not given."""
    if policy == "hard-learner" and online_loss_B is not None:
        return hard_learner(online_loss_B, scale=scale)
    if policy == "easy-reference" and reference_loss_B is not None:
        return easy_reference(reference_loss_B, scale=scale)
    if policy in ("learnability", "rho") and online_loss_B is not None and reference_loss_B is not None:
        return learnability(online_loss_B, reference_loss_B, scale=scale)
    raise ValueError(f"policy '{policy}' has no score from the losses given")
