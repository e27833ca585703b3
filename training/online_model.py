"""Who scores super-batches: what a stream of sub-batches asks of a scorer, and a model of yours as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import parts_of
from ..scoring.losses import Losses, one_each
from .batch import SuperBatch
from .group import bare
from .score_ahead import Copy


class Scorer(Protocol):
    """What is known of a super-batch: losses [B], or `Losses`.

    It may have `views`, the names of the views that it reads. The others are then made of the chosen examples alone. With
    no names in it, it scores by what the score table has, and is called in another thread, before its turn.

    It may have `snapshot`, which returns a scorer with a copy of its weights as they are, the same at each call: where
    super-batches are scored ahead, that one is called in another thread.
    """

    def score(self, batch: SuperBatch) -> torch.Tensor | Losses: ...


class OnlineScorer(Scorer, Protocol):
    """A scorer that also learns from what was chosen."""

    def step(self, batch: SuperBatch) -> Any: ...


class OnlineModel:
    """A small model of yours, of any library, that scores super-batches and trains on what was chosen.

    `losses(module, batch)` returns each example's loss, float [B]; it is called in evaluation mode without gradients to
    score, and in training mode to train on their mean, each times its weight where the selection has weights. (A part that
    stays in evaluation mode, such as a frozen BatchNorm, overrides its `train`.) Where the loss to train on is another one,
    such as a contrastive loss of the whole batch, `training_loss(module, batch)` returns it, a scalar. `views` names the
    views that `losses` reads (all, if it is left out): the others are made of the chosen examples alone. `scheduler`, if
    given, is stepped after the optimizer. In a group of processes `module` is wrapped in DistributedDataParallel; it scores
    without the wrapper.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Callable[[nn.Module, SuperBatch], torch.Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        views: Iterable[str] | None = None,
        training_loss: Callable[[nn.Module, SuperBatch], torch.Tensor] | None = None,
        scheduler: Any = None,
    ) -> None:
        self.module, self.losses, self.optimizer, self.scheduler = module, losses, optimizer, scheduler
        self.views = None if views is None else frozenset(views)
        self.training_loss = training_loss or self._mean

    def _mean(self, module: nn.Module, batch: SuperBatch) -> torch.Tensor:
        loss_B, weights = self.losses(module, batch), getattr(batch, "weights", None)
        return (loss_B if weights is None else weights * loss_B).mean()

    def score(self, batch: SuperBatch) -> torch.Tensor:
        """Losses float32 [B] of a super-batch; the module's training mode is put back."""
        return self._score(bare(self.module), batch)

    def snapshot(self) -> Scorer:
        """A scorer with the weights as they are now; the next call brings it up to date."""
        self._copied.copy.update()
        return self._copied

    @cached_property
    def _copied(self) -> _Copied:
        return _Copied(self, Copy(bare(self.module)))

    def _score(self, module: nn.Module, batch: SuperBatch) -> torch.Tensor:
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            with torch.no_grad():
                loss_B = self.losses(module, batch)
        finally:
            for part, training in modes.items():
                part.training = training
        return one_each("what losses returns", loss_B, len(batch)).float()

    def step(self, batch: SuperBatch) -> torch.Tensor:
        """One optimizer step on a sub-batch. Returns the detached loss."""
        self.module.train()
        loss = self.training_loss(self.module, batch) * getattr(batch, "weight", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        state = {"module": bare(self.module).state_dict(), "optimizer": self.optimizer.state_dict()}
        return state if self.scheduler is None else {**state, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        more = () if self.scheduler is None else ("scheduler",)
        module, optimizer, *scheduler = parts_of(state, "this OnlineModel", "module", "optimizer", *more)
        bare(self.module).load_state_dict(module)
        self.optimizer.load_state_dict(optimizer)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(*scheduler)


class _Copied:
    """Scores as a model does, by a copy of its weights."""

    def __init__(self, online: OnlineModel, copied: Copy) -> None:
        self.online, self.copy = online, copied

    def score(self, batch: SuperBatch) -> torch.Tensor:
        return self.online._score(self.copy.module, batch)
