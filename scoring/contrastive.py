"""open_clip's own training losses, in which identical captions of a batch are not each other's negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from .forward import embeddings_of
from .losses import identical_captions
from .models import Model

# As open_clip trains CoCa by default; the padding of its own tokenizer.
CAPTION_WEIGHT, PADDING = 2.0, 0


def contrastive_loss(model: Model) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """SigLIP's sigmoid loss where the model has a bias, else CLIP's softmax loss; CoCa's has its captioning loss beside it.

    Takes the model's output and the caption tokens int64 [b, L]; returns the mean over the batch. Two images with one
    caption are both right answers for it: such a pair is no negative, so its logit is left out.
    """
    sigmoid = getattr(model.module, "logit_bias", None) is not None
    contrastive = _SigLipLoss() if sigmoid else _ClipLoss()

    def loss(output: Any, tokens: torch.Tensor) -> torch.Tensor:
        image_BD, text_BD = embeddings_of(output)
        contrastive.masked_BB = identical_captions(tokens)
        value: torch.Tensor = contrastive(image_BD.float(), text_BD.float(), *_scale_and_bias(output))
        if isinstance(output, dict) and "labels" in output:
            logits_BVL = output["logits"].float().permute(0, 2, 1)
            value = value + CAPTION_WEIGHT * F.cross_entropy(logits_BVL, output["labels"], ignore_index=PADDING)
        return value

    return loss


def _scale_and_bias(output: Any) -> list[torch.Tensor]:
    if isinstance(output, dict):
        return [output[name] for name in ("logit_scale", "logit_bias") if name in output]
    return list(output[2:])


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
