"""Text towers without the work on padding.

A causal text tower that is read at one token (CLIP's end of text) never attends to later tokens. So nothing behind the
longest caption of a batch has to be computed: embeddings differ only by rounding (2e-6 in float32).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from .fit import on_meta, with_shared_tensors
from .flops import count_on_meta
from .forward import autocast, evaluating
from .models import Model
from .settings import Precision


class CaptionEncoder:
    """Embeds captions with a model's text tower. Each batch is cut to its longest caption where the tower allows it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tower = _causal_tower(model.module)
        # Cutting puts shorter position embeddings and masks into the module for the time of a pass. Threads that score
        # with one model must not see each other's, so each encoder has modules of its own, with the model's tensors.
        self._own = with_shared_tensors(model.module)
        self._flops: dict[int, int] = {}

    def lengths(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """How many tokens of each caption the tower has to process, int64 [B]: all where it would see the padding."""
        if self._tower is None:
            return torch.full((len(tokens_BL),), tokens_BL.shape[1])
        if self._tower.pool == "argmax":
            return tokens_BL.argmax(-1) + 1
        return (tokens_BL == self._tower.eos).int().argmax(-1) + 1

    def __call__(self, tokens_BL: torch.Tensor, precision: Precision = "fp32") -> torch.Tensor:
        """Unit-norm float32 embeddings [B, D], in evaluation mode and without gradients."""
        module = self._own
        with evaluating(module), torch.inference_mode(), autocast(tokens_BL.device, precision):
            text_BD = self._encode(module, tokens_BL, int(self.lengths(tokens_BL).max()))
            return F.normalize(text_BD.float(), dim=-1)

    def flops(self, length: int) -> int:
        """FLOPs of one caption of `length` tokens, measured once on shapes alone."""
        if length not in self._flops:
            tokens = torch.zeros(1, self._length, dtype=torch.int64, device="meta")
            with torch.no_grad():
                counted = count_on_meta(lambda: self._encode(self._on_meta, tokens, length), 1)
            self._flops[length] = counted.total
        return self._flops[length]

    @cached_property
    def flops_of_all(self) -> int:
        """FLOPs of one caption with all of its padding."""
        return self.flops(self._length)

    @cached_property
    def _length(self) -> int:
        return int(self._model.tokenize(["a"]).shape[1])

    @cached_property
    def _on_meta(self) -> nn.Module:
        return on_meta(self._own).eval()

    def _encode(self, module: nn.Module, tokens_BL: torch.Tensor, length: int) -> torch.Tensor:
        text = _EncodeText(module)
        if self._tower is None or length == tokens_BL.shape[1]:
            whole_BD: torch.Tensor = text(tokens_BL)
            return whole_BD
        part = module.get_submodule(self._tower.name)
        positions_LD, mask_LL = part.positional_embedding, part.attn_mask
        assert isinstance(positions_LD, torch.Tensor) and isinstance(mask_LL, torch.Tensor)
        name = ".".join(filter(None, ("module", self._tower.name)))
        cut = {f"{name}.positional_embedding": positions_LD[:length], f"{name}.attn_mask": mask_LL[:length, :length]}
        cut_BD: torch.Tensor = functional_call(text, cut, (tokens_BL[:, :length],))
        return cut_BD


class _EncodeText(nn.Module):
    """`encode_text` as a module's forward, for functional_call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.module.encode_text(tokens_BL, normalize=True)  # type: ignore[operator]
        return embedded


@dataclass(frozen=True)
class _CausalTower:
    """Where in an open_clip module its text tower is, and at which token it is read."""

    name: str
    pool: str
    eos: int


def _causal_tower(module: nn.Module) -> _CausalTower | None:
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer

    text = getattr(module, "text", None)
    if isinstance(module, CLIP):
        tower = _CausalTower("", module.text_pool_type, module.text_eos_id)
        causal = module.attn_mask is not None
    elif isinstance(text, TextTransformer):
        tower = _CausalTower("text", text.pool_type, text.eos_id)
        causal = text.attn_mask is not None and text.cls_emb is None
    else:
        return None
    return tower if causal and tower.pool in ("argmax", "eos") else None
