"""Scoring losses: one number for each example, from which scores are computed. Pure functions of tensors.

They may differ from the loss that trains the learner. Arithmetic is float32 for inputs of any dtype.
Shape suffixes: B examples, C classes, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import SpecError


@dataclass(frozen=True)
class Pairs:
    """One model's unit-norm embeddings [B, D] of a super-batch, and the scale and bias of its logits.

    Pairs with the same number in `group_B` (int64 [B], optional) are not each other's negatives: their captions are
    identical.
    """

    image_BD: torch.Tensor
    text_BD: torch.Tensor
    scale: float
    bias: float = 0.0
    group_B: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_BD)

    def own_logits(self, rows: slice = slice(None)) -> torch.Tensor:
        """z_ii of the pairs in `rows`, float32 [n]."""
        return self.scale * (self.image_BD[rows].float() * self.text_BD[rows].float()).sum(-1) + self.bias

    def logits(
        self, columns_c: torch.Tensor, rows: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of the n pairs in `rows` (all, if it is left out) with those of `columns_c`: image to text z_ij and text to
        image z_ji, float32 [n, c]; and bool [n, c], whether the two are negatives of each other."""
        z_nc = self.scale * (self.image_BD[rows].float() @ self.text_BD[columns_c].float().T) + self.bias
        zt_nc = self.scale * (self.text_BD[rows].float() @ self.image_BD[columns_c].float().T) + self.bias
        if self.group_B is None:
            numbers_n = torch.arange(len(self), device=self.image_BD.device)[rows]
            return z_nc, zt_nc, numbers_n[:, None] != columns_c
        return z_nc, zt_nc, self.group_B[rows, None] != self.group_B[columns_c]


@dataclass(frozen=True)
class Losses:
    """The losses of B examples, by which some of them are chosen; None where a policy does not need them.

    `online_B` and `reference_B` are the two models' losses, float32 [B]; `online_pairs` and `reference_pairs` their
    embeddings, for joint policies; `age_B` is how many steps ago the online loss was computed, int64 [B] (None: 0).
    `chosen_B`, float32 [B], is 1 where the run that is replayed chose the example, else 0. `past_B` is the learner's loss of
    when it last trained on the example, less the mean of all such (0 where it never did). `prior_B` is the loss of a second
    reference, from a second score table.
    """

    online_B: torch.Tensor | None = None
    reference_B: torch.Tensor | None = None
    online_pairs: Pairs | None = None
    reference_pairs: Pairs | None = None
    age_B: torch.Tensor | None = None
    chosen_B: torch.Tensor | None = None
    past_B: torch.Tensor | None = None
    prior_B: torch.Tensor | None = None


def one_each(what: str, values: Any, B: int) -> torch.Tensor:
    """`values`, [B], without gradients and of no narrower type than float32. Raises SpecError where they are anything else:
    broadcasting would make scores of a single loss."""
    if not isinstance(values, torch.Tensor) or values.shape != (B,):
        found = f"of shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else f"{type(values).__name__}"
        raise SpecError(f"{what} is {found}, expected a tensor of shape ({B},): one number for each example")
    return precise(values.detach())


def checked(known: Losses, B: int) -> Losses:
    """What is known of B examples, each loss as `one_each` has it."""
    names = {"online_B": "online_loss", "reference_B": "reference_loss", "past_B": "past_B", "prior_B": "prior_B"}
    given = {name: getattr(known, name) for name in names}
    found: dict[str, Any] = {n: one_each(names[n], losses, B) for n, losses in given.items() if losses is not None}
    return replace(known, **found)


def cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the true label, without label smoothing. Returns float32 [B], in nats."""
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none")


def generalised_cross_entropy(
    logits_BC: torch.Tensor, labels_B: torch.Tensor, q: float, reduction: str = "mean"
) -> torch.Tensor:
    """(1 - p^q) / q, p being the probability of the label: cross-entropy as q goes to 0, 1 - p at q = 1.

    Labels that a model holds for unlikely, as wrong ones mostly are, have smaller gradients than in cross-entropy: those of
    cross-entropy times p^q. The mean over B, or float32 [B] with reduction "none". Zhang and Sabuncu, arXiv 1805.07836.
    """
    loss_B = -torch.expm1(-q * F.cross_entropy(precise(logits_BC), labels_B, reduction="none")) / q
    return loss_B if reduction == "none" else loss_B.mean()


def distillation(
    logits_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> torch.Tensor:
    """Cross-entropy with a teacher's probabilities as soft targets: the mean over B, in nats, times temperature^2; [B] with
    reduction "none".

    Both models' logits are divided by the temperature. Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    soft_BC = (teacher_BC.float() / temperature).softmax(-1)
    loss: torch.Tensor = temperature**2 * F.cross_entropy(logits_BC.float() / temperature, soft_BC, reduction=reduction)
    return loss


def negative_dot_product(image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
    """ActiveCLIP's scoring loss: the negative dot product of each example's own two unit-norm embeddings [B, D].

    Returns float32 [B] in [-1, 1]. It is independent of the rest of the batch, so one number for each example can be stored.
    `Selector(scale=...)` sets how sharply it selects. Evans et al. 2023, arXiv 2312.05328, section 3.
    """
    return -(image_BD.float() * text_BD.float()).sum(-1)


def precise(values: torch.Tensor) -> torch.Tensor:
    """float32 of any narrower type."""
    return values if values.dtype == torch.float64 else values.float()


def caption_hashes(tokens_BL: torch.Tensor) -> torch.Tensor:
    """int64 [B]: the same for captions of the same tokens. A 64-bit sum with odd weights."""
    L = tokens_BL.shape[1]
    generator = torch.Generator().manual_seed(L)
    weights_L = torch.randint(-(2**62), 2**62, (L,), generator=generator).to(tokens_BL.device) * 2 + 1
    return (tokens_BL * weights_L).sum(1)


def identical_captions(tokens_BL: torch.Tensor) -> torch.Tensor:
    """bool [B, B]: pairs of different examples whose captions have the same tokens.

    Rows are compared by their hashes, so that no [B, B, L] tensor is needed.
    """
    hash_B = caption_hashes(tokens_BL)
    return (hash_B[:, None] == hash_B) & ~torch.eye(len(hash_B), dtype=torch.bool, device=tokens_BL.device)
