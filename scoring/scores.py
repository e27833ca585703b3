"""Scores: larger is more worth training on. Pure functions of per-example losses [B]; `Selector` multiplies them by its scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hard_learner(online_loss_B: torch.Tensor) -> torch.Tensor:
    """`loss(x | online)`."""
    return online_loss_B


def easy_reference(reference_loss_B: torch.Tensor) -> torch.Tensor:
    """`-loss(x | reference)`: independent of the learner."""
    return -reference_loss_B


def small_loss(online_loss_B: torch.Tensor) -> torch.Tensor:
    """`-loss(x | online)`: what is already easy, which among wrong labels is mostly what is right.

    Co-teaching (arXiv 1804.06872) chooses so, by a second network as large as the learner.
    """
    return -online_loss_B


def color(prior_loss_B: torch.Tensor, reference_loss_B: torch.Tensor) -> torch.Tensor:
    """`loss(x | prior) - loss(x | reference)`: what a reference that was trained on curated data too likes better.

    CoLoR-Filter (arXiv 2406.10670): the prior is trained on the bulk, the reference is the prior trained on. Neither knows
    the learner, so the score is computed once.
    """
    return prior_loss_B - reference_loss_B


def learnability(online_loss_B: torch.Tensor, reference_loss_B: torch.Tensor) -> torch.Tensor:
    """`loss(x | online) - loss(x | reference)`: not yet learned, and possible to learn.

    With the learner itself as the online model this is RHO-LOSS (arXiv 2206.07137); with a small one that trains
    beside the learner it is ClassAct and ActiveCLIP (arXiv 2312.05328, equation 3).
    """
    return online_loss_B - reference_loss_B
