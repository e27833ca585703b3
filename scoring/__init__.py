"""The science: models, losses, scores, selection (pure functions), FLOPs, the score table."""

from . import losses, scores
from .flops import forward_flops, train_flops
from .forward import Scored, score_batch
from .joint import JointChoice, Pairs, select_jointly
from .loading import find_model, load_model
from .models import Model, ModelSpec
from .scores import easy_reference, hard_learner, learnability
from .selection import select, sub_batch_size, super_batch_size
from .tables.lookup import ScoreTable, open_scores

__all__ = [
    "JointChoice",
    "Model",
    "ModelSpec",
    "Pairs",
    "ScoreTable",
    "Scored",
    "easy_reference",
    "find_model",
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
    "sub_batch_size",
    "super_batch_size",
    "train_flops",
]
