"""Joint selection (JEST, ACID): which b of B pairs are worth training on *together*. Pure functions.

A contrastive loss depends on the whole batch, so what a pair teaches depends on the other pairs in it. The sub-batch is
chosen in chunks: the first by each pair's own score, every later one by the score that a pair has together with those
already chosen. Evans et al. 2024, arXiv 2406.17711, algorithm 1. With a reference larger than the learner it is ACID,
arXiv 2411.18674.

Nothing here holds a [B, B] matrix: losses are computed in blocks of columns, so memory is O(B x block). Where several processes
(ranks) know the embeddings of all, each computes the losses of a block of rows, and is told those of the others.
Shape suffixes: B super-batch, b sub-batch, c a chunk or block of it, n a rank's rows, D embedding width. z is the matrix of
logits, scale * image . text + bias.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .losses import Losses, Pairs
from .ranks import ALONE, Ranks
from .scores import easy_reference, hard_learner, learnability
from .selection import Selection, select
from .settings import N_CHUNKS, ContrastiveLoss, Sampler

BLOCK = 1024
# Ranks begin at multiples of so many rows: products of whole tiles round alike, whatever the number of rows.
ROWS = 64


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
    ranks: Ranks = ALONE,
) -> Selection:
    """Choose `b` of `B` pairs, none twice, by joint learnability: loss(online) - loss(reference) within the sub-batch.

    Without `online` the score is -loss(reference), easy-reference JEST; without `reference` it is loss(online).
    `scale` multiplies the scores. Given those already chosen, S, the loss of pair k is, for `sigmoid` (SigLIP),
    its own positive term and its negative terms with S, both ways; for `softmax` (CLIP), the mean of
    -log softmax(z_k.) and -log softmax(z_.k) over S and k. The first chunk has no S: there `sigmoid` sees the positive
    term alone, the diagonal of the loss matrix, and `softmax` the super-batch as negatives. `ranks` that are given the same
    embeddings share the work, and choose the same: a collective.

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
    if any(pairs.image_BD.shape != pairs.text_BD.shape for pairs in given):
        raise ValueError("the image and text embeddings of a model differ in shape, expected [B, D] of both")
    if loss not in _LOSSES:
        raise ValueError(f"loss is '{loss}', expected {' or '.join(_LOSSES)}")
    if not 1 <= b <= B:
        raise ValueError(f"cannot select b={b} of {B} pairs")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}, expected a number above 0")
    bounds = row_bounds(B, ranks.size)
    rows = slice(*bounds[ranks.rank : ranks.rank + 2])
    losses = [_LOSSES[loss](pairs, rows) for pairs in given]

    def whole(own: list[torch.Tensor]) -> Losses:
        """What all ranks know, given each one's rows."""
        lengths = [end - start for start, end in itertools.pairwise(bounds)]
        found = list(torch.cat(ranks.gather(torch.stack(own, 1), lengths)).unbind(1)) if ranks.size > 1 else own
        return Losses(found.pop(0) if online is not None else None, found[0] if found else None)

    own = whole([of.own_n for of in losses])
    own_score_B = scale * score(own)

    score_B, chosen_B = own_score_B, torch.zeros(B, dtype=torch.bool, device=own_score_B.device)
    left = b
    for size in chunk_sizes(b, n_chunks):
        candidates = (~chosen_B).nonzero().squeeze(1)
        drawn = select(score_B[candidates], size, sampler=sampler, temperature=temperature, generator=generator)
        chunk_c = candidates[drawn]
        chosen_B[chunk_c] = True
        left -= size
        if left:
            score_B = scale * score(whole([of.beside(chunk_c) for of in losses]))
    return Selection(chosen_B.nonzero().squeeze(1), own_score_B, own.online_B, own.reference_B)


def row_bounds(B: int, ranks: int) -> list[int]:
    """Where the rows of each rank begin, and the last one's end: as equal as can be in steps of ROWS."""
    steps = -(-B // ROWS)
    return [min(B, ROWS * (steps * rank // ranks)) for rank in range(ranks + 1)]


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

    def __init__(self, pairs: Pairs, rows: slice) -> None:
        self._pairs, self._rows = pairs, rows
        self.own_n = F.softplus(-pairs.own_logits(rows))
        self._sum_n = self.own_n.clone()

    def beside(self, chunk_c: torch.Tensor) -> torch.Tensor:
        """Losses [n] beside all that was chosen, `chunk_c` now among it."""
        for block_c in chunk_c.split(BLOCK):
            z_nc, zt_nc, negative_nc = self._pairs.logits(block_c, self._rows)
            self._sum_n += ((F.softplus(z_nc) + F.softplus(zt_nc)) * negative_nc).sum(1)
        return self._sum_n


class _SoftmaxLosses:
    """The mean of -log softmax along the pair's row and its column, over itself and its negatives."""

    def __init__(self, pairs: Pairs, rows: slice) -> None:
        self._pairs, self._rows = pairs, rows
        self._own_logit_n = pairs.own_logits(rows)
        self._clear()
        self.own_n = self.beside(torch.arange(len(pairs), device=pairs.image_BD.device))
        self._clear()

    def _clear(self) -> None:
        self._row_n, self._column_n = (torch.full_like(self._own_logit_n, -torch.inf) for _ in range(2))

    def beside(self, chunk_c: torch.Tensor) -> torch.Tensor:
        """Losses [n] beside all that was chosen, `chunk_c` now among it."""
        for block_c in chunk_c.split(BLOCK):
            z_nc, zt_nc, negative_nc = self._pairs.logits(block_c, self._rows)
            self._row_n = torch.logaddexp(self._row_n, _log_sum_exp(z_nc, negative_nc))
            self._column_n = torch.logaddexp(self._column_n, _log_sum_exp(zt_nc, negative_nc))
        z_n = self._own_logit_n
        return (torch.logaddexp(z_n, self._row_n) + torch.logaddexp(z_n, self._column_n)) / 2 - z_n


def _log_sum_exp(z_nc: torch.Tensor, negative_nc: torch.Tensor) -> torch.Tensor:
    return z_nc.masked_fill(~negative_nc, -torch.inf).logsumexp(1)


_LOSSES: dict[str, type[_SigmoidLosses] | type[_SoftmaxLosses]] = {"sigmoid": _SigmoidLosses, "softmax": _SoftmaxLosses}
