"""open_clip's own training losses, in which identical captions of a batch are not each other's negatives.

Over several ranks each compares its own n pairs with all b. Shape suffixes: D embedding width, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from .forward import embeddings_of
from .losses import caption_hashes, identical_captions, precise
from .models import Model
from .ranks import ALONE, Ranks, all_rows

# As open_clip trains CoCa by default; the padding of its own tokenizer.
CAPTION_WEIGHT, PADDING = 2.0, 0


def contrastive_loss(model: Model, ranks: Ranks = ALONE) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """SigLIP's sigmoid loss where the model has a bias, else CLIP's softmax loss; CoCa's has its captioning loss beside it.

    Takes the model's output and the caption tokens int64 [n, L]; returns the mean over these pairs, each compared with
    all b pairs of all ranks. Two images with one caption are both right answers for it: such a pair is no negative, so
    its logit is left out. With several ranks it is a collective, and so is its backward pass.
    """
    sigmoid = getattr(model.module, "logit_bias", None) is not None
    contrastive = _SigLipLoss() if sigmoid else _ClipLoss()

    def loss(output: Any, tokens: torch.Tensor) -> torch.Tensor:
        image_nD, text_nD = (precise(features) for features in embeddings_of(output))
        contrastive.compare_with(*_all_pairs(image_nD, text_nD, tokens, ranks))
        value: torch.Tensor = contrastive(image_nD, text_nD, *_scale_and_bias(output))
        if isinstance(output, dict) and "labels" in output:
            value = value + CAPTION_WEIGHT * _caption_loss(output, ranks)
        return value

    return loss


def _all_pairs(
    image_nD: torch.Tensor, text_nD: torch.Tensor, tokens: torch.Tensor, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """All ranks' embeddings [b, D]; bool [n, b], who is no negative; and where this rank's pairs begin."""
    if ranks.size == 1:
        return image_nD, text_nD, identical_captions(tokens), 0
    pair_b2D, start = all_rows(torch.stack([image_nD, text_nD], 1), ranks)
    hash_n = caption_hashes(tokens)
    hash_b = torch.cat(ranks.gather(hash_n))
    own_nb = _own(len(hash_n), len(hash_b), start, tokens.device)
    return pair_b2D[:, 0], pair_b2D[:, 1], (hash_n[:, None] == hash_b) & ~own_nb, start


def _own(n: int, b: int, start: int, device: torch.device) -> torch.Tensor:
    """bool [n, b], true at each pair's own place."""
    return torch.arange(start, start + n, device=device)[:, None] == torch.arange(b, device=device)


def _caption_loss(output: dict[str, torch.Tensor], ranks: Ranks) -> torch.Tensor:
    """The mean over all tokens; a rank's share of the tokens may differ from its share n / b of the pairs."""
    logits_nVL, labels = output["logits"].float().permute(0, 2, 1), output["labels"]
    if ranks.size == 1:
        return F.cross_entropy(logits_nVL, labels, ignore_index=PADDING)
    tokens, b = ranks.sum(torch.stack([(labels != PADDING).sum(), labels.new_tensor(len(labels))])).tolist()
    total = F.cross_entropy(logits_nVL, labels, ignore_index=PADDING, reduction="sum")
    mean: torch.Tensor = total / tokens * (b / len(labels))
    return mean


def _scale_and_bias(output: Any) -> list[torch.Tensor]:
    if isinstance(output, dict):
        return [output[name] for name in ("logit_scale", "logit_bias") if name in output]
    return list(output[2:])


class _Compared:
    """Compares n pairs with all b."""

    image_bD: torch.Tensor
    text_bD: torch.Tensor
    masked_nb: torch.Tensor
    start: int

    def compare_with(self, image_bD: torch.Tensor, text_bD: torch.Tensor, masked_nb: torch.Tensor, start: int) -> None:
        self.image_bD, self.text_bD, self.masked_nb, self.start = image_bD, text_bD, masked_nb, start

    def logits(self, rows_nD: torch.Tensor, columns_bD: torch.Tensor, scale: Any, bias: Any) -> torch.Tensor:
        z_nb: torch.Tensor = scale * rows_nD @ columns_bD.T
        if bias is not None:
            z_nb += bias
        return z_nb.masked_fill(self.masked_nb, -torch.inf)


class _ClipLoss(_Compared, ClipLoss):
    """A logit of minus infinity does not count in a softmax."""

    def get_logits(self, image_nD: Any, text_nD: Any, logit_scale: Any, logit_bias: Any = None) -> Any:
        return (
            self.logits(image_nD, self.text_bD, logit_scale, logit_bias),
            self.logits(text_nD, self.image_bD, logit_scale, logit_bias),
        )

    def get_ground_truth(self, device: Any, num_logits: int) -> torch.Tensor:
        labels_n: torch.Tensor = super().get_ground_truth(device, num_logits)
        return labels_n + self.start if self.start else labels_n


class _SigLipLoss(_Compared, SigLipLoss):
    """A negative with a logit of minus infinity has a loss of zero."""

    def get_logits(self, image_nD: Any, text_nD: Any, logit_scale: Any, logit_bias: Any = None) -> Any:
        return self.logits(image_nD, self.text_bD, logit_scale, logit_bias)

    def get_ground_truth(self, device: Any, dtype: Any, num_logits: int, negative_only: bool = False) -> torch.Tensor:
        """1 for a pair's own caption, -1 for all others."""
        b = len(self.text_bD)
        if num_logits == b:
            ones_nb: torch.Tensor = super().get_ground_truth(device, dtype, num_logits, negative_only)
            return ones_nb
        return 2 * _own(num_logits, b, self.start, device).to(dtype) - 1
