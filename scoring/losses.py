"""Scoring losses: one number an example, what a score is made of. Pure functions of tensors.

They may differ from the loss that trains the learner. Arithmetic is float32 whatever the inputs' dtype.
Shape suffixes: B examples, C classes, D embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the true label, without label smoothing. Returns float32 [B], in nats."""
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none")


def dot_product_similarity(image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
    """Dot product of each example's own two unit-norm embeddings. Returns float32 [B] in [-1, 1]."""
    return (image_BD.float() * text_BD.float()).sum(-1)


def negative_dot_product(image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
    """ActiveCLIP's scoring loss: independent of the rest of the batch, so one scalar can be stored.

    Returns float32 [B] in [-1, 1]. How sharply it selects is set by the scale that `scores.learnability` applies.
    Evans et al. 2023, arXiv 2312.05328, section 3.
    """
    return -dot_product_similarity(image_BD, text_BD)


def identical_captions(tokens_BL: torch.Tensor) -> torch.Tensor:
    """bool [B, B]: pairs of different examples whose captions have the same tokens.

    Rows are compared by a 64-bit sum with odd weights, so that no [B, B, L] is made.
    """
    B, L = tokens_BL.shape
    generator = torch.Generator().manual_seed(L)
    weights_L = torch.randint(-(2**62), 2**62, (L,), generator=generator).to(tokens_BL.device) * 2 + 1
    hash_B = (tokens_BL * weights_L).sum(1)
    return (hash_B[:, None] == hash_B) & ~torch.eye(B, dtype=torch.bool, device=tokens_BL.device)
