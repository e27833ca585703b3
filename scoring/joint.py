"""Joint selection (JEST, ACID): which b of B pairs are worth training on *together*. Pure functions.

A contrastive loss depends on the whole batch, so what a pair teaches depends on the other pairs in it. The sub-batch is
chosen in chunks: the first by each pair's own score, every later one by the score that a pair has together with those
already chosen. Evans et al. 2024, arXiv 2406.17711, algorithm 1. With a reference larger than the learner it is ACID,
arXiv 2411.18674.

Nothing here holds a [B, B] matrix: losses are computed in blocks of columns, so memory is O(B x block).
Shape suffixes: B super-batch, b sub-batch, c a chunk or block of it, D embedding width. z is the matrix of logits,
scale * image . text + bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .losses import Losses, Pairs
from .scores import easy_reference, hard_learner, learnability
from .selection import Selection, select
from .settings import N_CHUNKS, ContrastiveLoss, Sampler

BLOCK = 1024


def difference(known: Losses) -> torch.Tensor:
    """The score of JEST: loss(online) - loss(reference), or the one of them that is given."""
    if known.online_B is None:
        assert known.reference_B is not None
        return easy_reference(known.reference_B)
    return (
        hard_learner(known.online_B) if known.reference_B is None else learnability(known.online_B, known.reference_B)
    )


def select_jointly(
    online: Pairs | None,
    reference: Pairs | None,
    b: int,
    *,
    loss: ContrastiveLoss,
    score: Callable[[Losses], torch.Tensor] = difference,
    n_chunks: int = N_CHUNKS,
    sampler: Sampler = "softmax",
    temperature: float = 1.0,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Selection:
    """Choose `b` of `B` pairs, none twice, by joint learnability: loss(online) - loss(reference) within the sub-batch.

    Without `online` the score is -loss(reference), easy-reference JEST; without `reference` it is loss(online).
    `scale` multiplies the scores. Given those already chosen, S, the loss of pair k is, for `sigmoid` (SigLIP),
    its own positive term and its negative terms with S, both ways; for `softmax` (CLIP), the mean of
    -log softmax(z_k.) and -log softmax(z_.k) over S and k. The first chunk has no S: there `sigmoid` sees the positive
    term alone, the diagonal of the loss matrix, and `softmax` the super-batch as negatives.

    Raises ValueError as `select` does, and where neither model is given or their sizes differ.
    """
    given = [pairs for pairs in (online, reference) if pairs is not None]
    if not given:
        raise ValueError("nothing to score with: give online, reference or both")
    B = len(given[0])
    if any(len(pairs) != B for pairs in given):
        raise ValueError(
            f"online and reference see {' and '.join(str(len(p)) for p in given)} pairs, expected the same"
        )
    if not 1 <= b <= B:
        raise ValueError(f"cannot select b={b} of {B} pairs")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}, expected a number above 0")
    online_losses, reference_losses = (None if pairs is None else _LOSSES[loss](pairs) for pairs in (online, reference))
    own = [None if losses is None else losses.own_B for losses in (online_losses, reference_losses)]
    own_score_B = scale * score(Losses(own[0], own[1]))

    score_B, chosen_B = own_score_B, torch.zeros(B, dtype=torch.bool, device=own_score_B.device)
    left = b
    for size in chunk_sizes(b, n_chunks):
        candidates = (~chosen_B).nonzero().squeeze(1)
        drawn = select(score_B[candidates], size, sampler=sampler, temperature=temperature, generator=generator)
        chunk_c = candidates[drawn]
        chosen_B[chunk_c] = True
        left -= size
        if left:
            beside = [None if x is None else x.beside(chunk_c) for x in (online_losses, reference_losses)]
            score_B = scale * score(Losses(beside[0], beside[1]))
    return Selection(chosen_B.nonzero().squeeze(1), own_score_B, *own)


def chunk_sizes(b: int, n_chunks: int) -> list[int]:
    """`b` in at most `n_chunks` parts as equal as can be, the larger ones first. Raises ValueError below one chunk."""
    if n_chunks < 1:
        raise ValueError(f"n_chunks is {n_chunks}, expected at least 1")
    n = min(n_chunks, b)
    return [b // n + (i < b % n) for i in range(n)]


def selection_flops(B: int, b: int, widths: Sequence[int], loss: ContrastiveLoss, n_chunks: int = N_CHUNKS) -> int:
    """FLOPs (2 x multiply-adds) of the matrix products of one `select_jointly`; `widths` are D of each model given.

    Every chunk but the last is multiplied with all pairs, both ways; `softmax` first multiplies all with all.
    """
    columns = b - chunk_sizes(b, n_chunks)[-1] + (B if loss == "softmax" else 0)
    return sum(2 * 2 * B * columns * width for width in widths)


class _SigmoidLosses:
    """-log sigmoid(z_ii), and -log sigmoid(-z) of the pair with every one chosen, as its image and as its text."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self.own_B = F.softplus(-pairs.own_logits())
        self._sum_B = self.own_B.clone()

    def beside(self, chunk_c: torch.Tensor) -> torch.Tensor:
        """Losses [B] beside all that was chosen, `chunk_c` now among it."""
        for block_c in chunk_c.split(BLOCK):
            z_Bc, zt_Bc, negative_Bc = self._pairs.logits(block_c)
            self._sum_B += ((F.softplus(z_Bc) + F.softplus(zt_Bc)) * negative_Bc).sum(1)
        return self._sum_B


class _SoftmaxLosses:
    """The mean of -log softmax along the pair's row and its column, over itself and its negatives."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._own_logit_B = pairs.own_logits()
        self._clear()
        self.own_B = self.beside(torch.arange(len(pairs), device=pairs.image_BD.device))
        self._clear()

    def _clear(self) -> None:
        self._row_B, self._column_B = (torch.full_like(self._own_logit_B, -torch.inf) for _ in range(2))

    def beside(self, chunk_c: torch.Tensor) -> torch.Tensor:
        """Losses [B] beside all that was chosen, `chunk_c` now among it."""
        for block_c in chunk_c.split(BLOCK):
            z_Bc, zt_Bc, negative_Bc = self._pairs.logits(block_c)
            self._row_B = torch.logaddexp(self._row_B, _log_sum_exp(z_Bc, negative_Bc))
            self._column_B = torch.logaddexp(self._column_B, _log_sum_exp(zt_Bc, negative_Bc))
        z_B = self._own_logit_B
        return (torch.logaddexp(z_B, self._row_B) + torch.logaddexp(z_B, self._column_B)) / 2 - z_B


def _log_sum_exp(z_Bc: torch.Tensor, negative_Bc: torch.Tensor) -> torch.Tensor:
    return z_Bc.masked_fill(~negative_Bc, -torch.inf).logsumexp(1)


_LOSSES: dict[str, type[_SigmoidLosses] | type[_SoftmaxLosses]] = {"sigmoid": _SigmoidLosses, "softmax": _SoftmaxLosses}
