"""Selection: which b of the B examples of a super-batch to train on. Pure functions of scores and a generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .settings import Sampler


class NotFiniteError(ValueError):
    """A score is NaN or infinite."""


@dataclass(frozen=True)
class Selection:
    """Which examples of a super-batch to train on: `index` int64 [b], ascending. `score`, float32 [B], is the score by
    which they were chosen; `online_loss` and `reference_loss` [B] are each model's losses; None where the policy has
    none. `weight`, float32 [B], is what the loss of each is multiplied by if it is trained on; None where all weigh 1."""

    index: torch.Tensor
    score: torch.Tensor | None = None
    online_loss: torch.Tensor | None = None
    reference_loss: torch.Tensor | None = None
    weight: torch.Tensor | None = None


def select(
    scores_B: torch.Tensor,
    b: int,
    *,
    sampler: Sampler = "softmax",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose `b` of `B` indices, none twice. Returns int64 [b], ascending, on the device of `scores_B`.

    `softmax` draws without replacement with probability softmax(scores / temperature), by the Gumbel top-k trick
    (Kool et al., arXiv 1903.06059): step 3 of Algorithm 1 of arXiv 2312.05328. `topk` takes the highest scores
    (RHO-LOSS); ties go to the lower index. `generator` lives on the CPU, so that every device draws the same.

    Raises ValueError where b is not in 1..B, a score is NaN or infinite, or the temperature is not above 0.
    """
    B = scores_B.shape[0]
    if scores_B.dim() != 1 or not 1 <= b <= B:
        raise ValueError(f"cannot select b={b} of scores with shape {tuple(scores_B.shape)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected more than 0; for a hard choice use sampler='topk'")
    if not torch.isfinite(scores_B).all():
        bad = int((~torch.isfinite(scores_B)).nonzero()[0])
        raise NotFiniteError(f"score {bad} is {float(scores_B[bad])}; scores must be finite")
    keys_B = scores_B.double()
    if sampler == "softmax":
        keys_B = keys_B / temperature + gumbel(B, generator).to(scores_B.device)
    elif sampler != "topk":
        raise ValueError(f"sampler is '{sampler}', expected softmax or topk")
    # The b-th key and all above it; sorting all of them would take four times as long.
    least = torch.topk(keys_B, b, sorted=False).values.min()
    chosen_B = keys_B > least
    ties = (keys_B == least).nonzero().squeeze(1)
    chosen_B[ties[: b - int(chosen_B.sum())]] = True
    return chosen_B.nonzero().squeeze(1)


def prune(
    scores_B: torch.Tensor, b: int, *, rate: float = 0.5, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoBatch (arXiv 2303.04947) with batches of one size: choose `b` of `B`, leaving out those with negative scores first.

    Of the n with a negative score (a loss below the mean) m are dropped at random, as many as are to go, at most `rate` n; the
    others of them weigh n / (n - m), which is 1 / (1 - r) of the paper. Where more are to go, all that are left are equally
    likely to. So every example has the same expected weight. Returns int64 [b], ascending, and all weights, float32 [B].

    Raises ValueError where b is not in 1..B, a score is NaN or infinite, or the rate is not from 0 to below 1.
    """
    B = len(scores_B)
    if not 1 <= b <= B or not 0 <= rate < 1:
        raise ValueError(f"cannot choose b={b} of {B} scores at a rate of {rate:g}")
    if not torch.isfinite(scores_B).all():
        raise NotFiniteError("a score is nan or infinite")
    low = (scores_B < 0).nonzero().squeeze(1).cpu()
    dropped = min(B - b, int(rate * len(low)))
    stays_B = torch.ones(B, dtype=torch.bool)
    stays_B[low[torch.randperm(len(low), generator=generator)[:dropped]]] = False
    weight_B = torch.ones(B)
    if dropped:
        weight_B[low] = len(low) / (len(low) - dropped)
    left = stays_B.nonzero().squeeze(1)
    index = left[torch.randperm(len(left), generator=generator)[:b]].sort().values
    return index.to(scores_B.device), weight_B.to(scores_B.device)


def reweight(scores_B: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Weights softmax(scores / temperature) x B of all examples, float32 [B], 1 on average: nothing is dropped.

    Raises ValueError where a score is NaN or infinite.
    """
    if not torch.isfinite(scores_B).all():
        raise NotFiniteError("a score is nan or infinite")
    return ((scores_B.double() / temperature).softmax(0) * len(scores_B)).float()


def gumbel(n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """`n` standard Gumbel draws, float64 on the CPU: -log of a standard exponential."""
    return -torch.empty(n, dtype=torch.float64).exponential_(generator=generator).log()
