"""The science: losses, policies, selection (pure functions), models, FLOPs, the score table.

Names are imported when they are first used, so that options and help texts need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from . import losses, scores
    from .flops import forward_flops, train_flops
    from .forward import score_batch
    from .joint import select_jointly
    from .loading import find_model, load_model
    from .losses import Losses, Pairs
    from .models import Model, ModelSpec, Scored
    from .policies import POLICIES, Policy, find_policy
    from .scores import easy_reference, hard_learner, learnability, small_loss
    from .selection import Selection, select
    from .selector import Selector
    from .settings import sub_batch_size, super_batch_size
    from .tables.lookup import ScoreTable, open_scores

_HOMES = {
    "losses": "",
    "scores": "",
    "POLICIES": "policies",
    "Losses": "losses",
    "Model": "models",
    "ModelSpec": "models",
    "Pairs": "losses",
    "Policy": "policies",
    "ScoreTable": "tables.lookup",
    "Scored": "forward",
    "Selection": "selection",
    "Selector": "selector",
    "easy_reference": "scores",
    "find_model": "loading",
    "find_policy": "policies",
    "forward_flops": "flops",
    "hard_learner": "scores",
    "learnability": "scores",
    "load_model": "loading",
    "open_scores": "tables.lookup",
    "score_batch": "forward",
    "select": "selection",
    "select_jointly": "joint",
    "small_loss": "scores",
    "sub_batch_size": "settings",
    "super_batch_size": "settings",
    "train_flops": "flops",
}
__all__ = [
    "POLICIES",
    "Losses",
    "Model",
    "ModelSpec",
    "Pairs",
    "Policy",
    "ScoreTable",
    "Scored",
    "Selection",
    "Selector",
    "easy_reference",
    "find_model",
    "find_policy",
    "forward_flops",
    "hard_learner",
    "learnability",
    "load_model",
    "losses",
    "open_scores",
    "score_batch",
    "scores",
    "select",
    "select_jointly",
    "small_loss",
    "sub_batch_size",
    "super_batch_size",
    "train_flops",
]

__getattr__ = lazily(__name__, _HOMES)
