"""Policies: how a run chooses. Each policy is one frozen row, and all that differs between policies is in its row.

Your own policy is a `Policy` like these. It can be used wherever a name can: as an object in Python, and on the command
line as `--policy module:NAME`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ..datasets.targets import CAPTION, LABEL
from ..errors import SpecError
from ..ledger import BASELINE
from . import scores

if TYPE_CHECKING:
    import torch

    from .losses import Losses

Online = Literal["none", "learner", "model", "either", "past"]
# Of these no model scores super-batches.
NO_SCORER = ("none", "past")
ReferenceUse = Literal["none", "loss", "embeddings"]


@dataclass(frozen=True)
class Policy:
    """How the b of B examples are chosen.

    `score` computes the score [B] from the losses: larger is more worth training on. None draws uniformly. `online` says
    whose losses it needs: those of a small `model` that trains beside the learner, the `learner`'s own, `either` (the
    model's if there is one, else the learner's), the learner's own of when it last trained on the examples (`past`, which
    costs nothing), or `none`. `reference` says what it reads from the score table. A
    `joint` policy chooses pairs for what they teach together; its `score` combines the two models' losses. `tasks` are
    the names of the tasks that it works for; empty for all. `larger_reference`: the reference must cost more than the
    learner. A policy that `filters` keeps the best share of the data set by the score of the stored losses, and draws
    uniformly from that; one with a `prior` subtracts two tables for it. One that `prunes` drops examples with a negative
    score at random, and weighs the rest of them up. Under one that `probes`, a run draws uniformly once it finds that
    choosing does not pay. `colour` is the colour of its line in plots.
    """

    name: str
    score: Callable[[Losses], torch.Tensor] | None = None
    online: Online = "none"
    reference: ReferenceUse = "none"
    joint: bool = False
    tasks: tuple[str, ...] = ()
    help: str = ""
    colour: str = ""
    larger_reference: bool = False
    filters: bool = False
    prior: bool = False
    prunes: bool = False
    probes: bool = False

    def __post_init__(self) -> None:
        for value, known in ((self.online, Online), (self.reference, ReferenceUse)):
            if value not in get_args(known):
                raise SpecError(f"policy '{self.name}': '{value}' is none of {', '.join(get_args(known))}")
        if self.score is None and (self.online, self.reference, self.joint) != ("none", "none", False):
            raise SpecError(f"policy '{self.name}' has no score; give it one, or ask for no losses")
        if self.joint and self.reference != "embeddings":
            raise SpecError(f"policy '{self.name}' chooses jointly, which needs reference='embeddings'")
        if self.probes and (self.online != "model" or self.joint):
            raise SpecError(
                f"policy '{self.name}' probes with an online model: it takes online='model', and chooses examples singly"
            )
        if self.prior and not self.filters:
            raise SpecError(f"policy '{self.name}' reads a prior's losses, which only a policy that filters can")
        if self.prunes and (self.online, self.reference, self.joint) != ("past", "none", False):
            raise SpecError(
                f"policy '{self.name}' prunes by the learner's past losses: it takes online='past' and no reference"
            )
        if self.filters and (self.online, self.reference, self.joint) != ("none", "loss", False):
            raise SpecError(
                f"policy '{self.name}' filters by stored losses: it takes online='none' and reference='loss'"
            )

    @property
    def selects(self) -> bool:
        """Whether it chooses a part of every super-batch."""
        return self.score is not None and not self.filters

    def __str__(self) -> str:
        return self.name


def _known(**losses: torch.Tensor | None) -> list[torch.Tensor]:
    missing = [name for name, value in losses.items() if value is None]
    if missing:
        raise SpecError(f"this policy's score needs {' and '.join(missing)}; give it to the selector")
    return [value for value in losses.values() if value is not None]


def _hard_learner(known: Losses) -> torch.Tensor:
    (online_B,) = _known(online_loss=known.online_B)
    return scores.hard_learner(online_B)


def _small_loss(known: Losses) -> torch.Tensor:
    (online_B,) = _known(online_loss=known.online_B)
    return scores.small_loss(online_B)


def _easy_reference(known: Losses) -> torch.Tensor:
    (reference_B,) = _known(reference_loss=known.reference_B)
    return scores.easy_reference(reference_B)


def _learnability(known: Losses) -> torch.Tensor:
    online_B, reference_B = _known(online_loss=known.online_B, reference_loss=known.reference_B)
    return scores.learnability(online_B, reference_B)


def _color(known: Losses) -> torch.Tensor:
    prior_B, reference_B = _known(prior_loss=known.prior_B, reference_loss=known.reference_B)
    return scores.color(prior_B, reference_B)


def _past(known: Losses) -> torch.Tensor:
    (past_B,) = _known(past_loss=known.past_B)
    return past_B


def _replay(known: Losses) -> torch.Tensor:
    (chosen_B,) = _known(chosen=known.chosen_B)
    return chosen_B


# Okabe and Ito's colours, which people with any colour vision can distinguish. Grey is the baseline.
UNIFORM = Policy(BASELINE, help="draw at random, choose nothing", colour="#6b6b6b")
LEARNABILITY = Policy(
    "learnability",
    _learnability,
    online="model",
    reference="loss",
    help="loss(online) - loss(reference): ClassAct, ActiveCLIP",
    colour="#0072b2",
)
RHO = Policy(
    "rho",
    _learnability,
    online="learner",
    reference="loss",
    help="RHO-LOSS: learnability, with the learner as the online model",
    colour="#d55e00",
)
HARD_LEARNER = Policy("hard-learner", _hard_learner, online="model", help="loss(online)", colour="#cc79a7")
SMALL_LOSS = Policy(
    "small-loss", _small_loss, online="model", help="-loss(online): the choice of co-teaching", colour="#661100"
)
EASY_REFERENCE = Policy("easy-reference", _easy_reference, reference="loss", help="-loss(reference)", colour="#009e73")
FILTER = Policy(
    "filter",
    _easy_reference,
    reference="loss",
    help="keep the share with the lowest loss(reference), and draw uniformly from that",
    colour="#882255",
    filters=True,
)
COLOR_FILTER = Policy(
    "color-filter",
    _color,
    reference="loss",
    help="keep the share with the highest loss(prior) - loss(reference): CoLoR-Filter",
    colour="#999933",
    filters=True,
    prior=True,
)
INFOBATCH = Policy(
    "infobatch",
    _past,
    online="past",
    tasks=(LABEL.task,),
    help="prune well-learned examples at random by the learner's own past losses, and weigh the rest up: InfoBatch",
    colour="#44aa99",
    prunes=True,
)
AUTO = Policy(
    "auto",
    _learnability,
    online="model",
    reference="loss",
    help="learnability, until the run finds that choosing does not pay, then uniform",
    colour="#332288",
    probes=True,
)
JEST = Policy(
    "jest",
    _learnability,
    online="either",
    reference="embeddings",
    joint=True,
    tasks=(CAPTION.task,),
    help="joint learnability of image-text pairs",
    colour="#e69f00",
)
JEST_EASY = Policy(
    "jest-easy",
    _easy_reference,
    reference="embeddings",
    joint=True,
    tasks=(CAPTION.task,),
    help="jest by the reference alone",
    colour="#56b4e9",
)
ACID = Policy(
    "acid",
    _learnability,
    online="either",
    reference="embeddings",
    joint=True,
    tasks=(CAPTION.task,),
    help="jest with a reference larger than the learner",
    colour="#a6761d",
    larger_reference=True,
)
# No choice of its own, so it is not among those that a user can name: `--replay RUN` takes it.
REPLAY = Policy("replay", _replay, help="train on what another run chose", colour="#000000")
POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        *(UNIFORM, LEARNABILITY, RHO, HARD_LEARNER, SMALL_LOSS, EASY_REFERENCE, FILTER),
        *(COLOR_FILTER, INFOBATCH, AUTO),
        *(JEST, JEST_EASY, ACID),
    )
}


def find_policy(policy: str | Policy) -> Policy:
    """The policy of a name, or of `module:NAME`; a `Policy` is itself. Raises SpecError for anything else."""
    if isinstance(policy, Policy):
        return policy
    if policy in POLICIES:
        return POLICIES[policy]
    module, _, attribute = policy.partition(":")
    if not all((*module.split("."), attribute)):
        raise SpecError(
            f"unknown policy '{policy}'; known are {', '.join(POLICIES)}, or module:NAME for one of your own"
        )
    # As `python -m` does, but after all installed packages: a user's random.py must not replace the library's.
    if "" not in sys.path:
        sys.path.append("")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise SpecError(
            f"policy '{policy}': {e}; it is imported from the working folder or the installed packages"
        ) from None
    if not isinstance(found, Policy):
        raise SpecError(f"policy '{policy}' is {type(found).__name__}, expected a curate.Policy")
    return found
