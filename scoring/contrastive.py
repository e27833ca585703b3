"""open_clip's own training losses, in which identical captions of a batch are not each other's negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.loss import ClipLoss, SigLipLoss

from ..scoring.losses import identical_captions
from ..scoring.models import Model


def contrastive_loss(model: Model) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """SigLIP's sigmoid loss where the model has a bias, else CLIP's softmax loss.

    Takes the model's output and the caption tokens int64 [b, L]; returns the mean over the batch. Two images with one
    caption are both right answers for it: such a pair is no negative, so its logit is left out.
    """
    sigmoid = getattr(model.module, "logit_bias", None) is not None
    contrastive = _SigLipLoss() if sigmoid else _ClipLoss()

    def loss(output: Any, tokens: torch.Tensor) -> torch.Tensor:
        values = list(output.values()) if isinstance(output, dict) else list(output)
        image_BD, text_BD, *scale_and_bias = values
        contrastive.masked_BB = identical_captions(tokens)
        value: torch.Tensor = contrastive(image_BD.float(), text_BD.float(), *scale_and_bias)
        return value

    return loss


class _ClipLoss(ClipLoss):
    """A logit of minus infinity does not count in a softmax."""

    masked_BB: torch.Tensor

    def get_logits(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(z_BB.masked_fill(self.masked_BB, -torch.inf) for z_BB in super().get_logits(*args, **kwargs))


class _SigLipLoss(SigLipLoss):
    """A negative with a logit of minus infinity has a loss of zero."""

    masked_BB: torch.Tensor

    def get_logits(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_logits(*args, **kwargs).masked_fill(self.masked_BB, -torch.inf)
