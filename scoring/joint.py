"""Joint selection (JEST, ACID): which b of B pairs are worth training on *together*. Pure functions.

A contrastive loss is made by the whole batch, so what a pair teaches depends on the pairs beside it. The sub-batch is
chosen in chunks: the first by each pair's own score, every later one by the score that a pair has beside those already
chosen. Evans et al. 2024, arXiv 2406.17711, algorithm 1; with a reference larger than the learner that is ACID,
arXiv 2411.18674.

Nothing here holds a [B, B] matrix: losses are made in blocks of columns, so that memory is O(B x block).
Shape suffixes: B super-batch, b sub-batch, c a chunk or block of it, D embedding width. z is the matrix of logits,
scale * image . text + bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from .selection import Sampler, select

ContrastiveLoss = Literal["sigmoid", "softmax"]
N_CHUNKS = 16
BLOCK = 1024


@dataclass(frozen=True)
class Pairs:
    """What one model says of a super-batch: unit-norm embeddings [B, D], and the scale and bias of its logits.

    `group_B` (int64 [B], optional) marks pairs that are not each other's negatives: those of one identical caption.
    """

    image_BD: torch.Tensor
    text_BD: torch.Tensor
    scale: float
    bias: float = 0.0
    group_B: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_BD)

    def own_logits(self) -> torch.Tensor:
        """z_ii, float32 [B]."""
        return self.scale * (self.image_BD.float() * self.text_BD.float()).sum(-1) + self.bias

    def logits(self, columns_c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every pair with those of `columns_c`: image to text z_ij and text to image z_ji, float32 [B, c], and bool
        [B, c]: whether the two are negatives of each other."""
        z_Bc = self.scale * (self.image_BD.float() @ self.text_BD[columns_c].float().T) + self.bias
        zt_Bc = self.scale * (self.text_BD.float() @ self.image_BD[columns_c].float().T) + self.bias
        if self.group_B is None:
            rows_B = torch.arange(len(self), device=self.image_BD.device)
            return z_Bc, zt_Bc, rows_B[:, None] != columns_c
        return z_Bc, zt_Bc, self.group_B[:, None] != self.group_B[columns_c]


@dataclass(frozen=True)
class JointChoice:
    """`chosen_b` int64, ascending; `own_score_B` float32: the score of the first chunk; each model's own losses [B],
    None where it was not asked."""

    chosen_b: torch.Tensor
    own_score_B: torch.Tensor
    online_loss_B: torch.Tensor | None
    reference_loss_B: torch.Tensor | None


def select_jointly(
    online: Pairs | None,
    reference: Pairs | None,
    b: int,
    *,
    loss: ContrastiveLoss,
    n_chunks: int = N_CHUNKS,
    sampler: Sampler = "softmax",
    temperature: float = 1.0,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> JointChoice:
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
    online_losses, reference_losses = (None if pairs is None else _LOSSES[loss](pairs) for pairs in (online, reference))
    own = [None if losses is None else losses.own_B for losses in (online_losses, reference_losses)]
    own_score_B = scale * _difference(*own)

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
            score_B = scale * _difference(*beside)
    return JointChoice(chosen_B.nonzero().squeeze(1), own_score_B, *own)


def chunk_sizes(b: int, n_chunks: int) -> list[int]:
    """`b` in at most `n_chunks` parts as equal as can be, the larger ones first. Raises ValueError below one chunk."""
    if n_chunks < 1:
        raise ValueError(f"n_chunks is {n_chunks}, expected at least 1")
    n = min(n_chunks, b)
    return [b // n + (i < b % n) for i in range(n)]


def selection_flops(B: int, b: int, widths: Sequence[int], loss: ContrastiveLoss, n_chunks: int = N_CHUNKS) -> int:
    """FLOPs (2 x multiply-adds) of the matrix products of one `select_jointly`; `widths` are D of each model given.

    Every chunk but the last is multiplied with all pairs, both ways; `softmax` begins with all against all.
    """
    columns = b - chunk_sizes(b, n_chunks)[-1] + (B if loss == "softmax" else 0)
    return sum(2 * 2 * B * columns * width for width in widths)


def _difference(online_B: torch.Tensor | None, reference_B: torch.Tensor | None) -> torch.Tensor:
    if online_B is None:
        assert reference_B is not None
        return -reference_B
    return online_B if reference_B is None else online_B - reference_B


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
