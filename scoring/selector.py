"""The selector: chooses which examples of a super-batch to train on, by a policy, its settings and random numbers."""

from __future__ import annotations

import copy
import math
from typing import Any, get_args

import torch

from ..errors import SpecError, parts_of
from .joint import select_jointly
from .losses import Losses, Pairs, checked, one_each
from .policies import NO_SCORER, Policy, find_policy
from .ranks import ALONE, Ranks
from .selection import Selection, prune, reweight, select
from .settings import N_CHUNKS, REWEIGHT, ContrastiveLoss, Sampler


class Selector:
    """Chooses `b` of the examples of a super-batch: steps 2 and 3 of Algorithm 1 of arXiv 2312.05328.

    `policy` is a name, `module:NAME` or a `Policy`. `scale` multiplies the scores: use 1 for cross-entropy, and about 20
    for dot products, which lie in [-1, 1]. `sampler` and `temperature` are those of `curate.select`; with "reweight" all
    examples are taken, and weigh softmax(score / temperature) x B. `chunks` and `joint_loss` are those of
    `curate.select_jointly` (None: sigmoid where both models have a bias, else softmax). Two selectors with the same `seed`
    and the same losses choose the same examples: random numbers are drawn on the CPU, for any device.
    """

    def __init__(
        self,
        policy: str | Policy,
        b: int,
        *,
        sampler: Sampler = "softmax",
        temperature: float = 1.0,
        scale: float = 1.0,
        chunks: int = N_CHUNKS,
        joint_loss: ContrastiveLoss | None = None,
        seed: int = 0,
    ) -> None:
        if b < 1:
            raise SpecError(f"b is {b}, expected at least 1 example to choose")
        if not 0 < temperature < math.inf:
            raise SpecError(f"temperature is {temperature}, expected more than 0; for a hard choice use sampler='topk'")
        if sampler not in get_args(Sampler):
            raise SpecError(f"sampler is '{sampler}', expected {', '.join(get_args(Sampler))}")
        if not 0 < scale < math.inf:
            raise SpecError(f"scale is {scale}, expected a number above 0")
        if chunks < 1:
            raise SpecError(f"chunks is {chunks}, expected at least 1")
        if joint_loss not in (None, *get_args(ContrastiveLoss)):
            raise SpecError(f"joint_loss is '{joint_loss}', expected {' or '.join(get_args(ContrastiveLoss))}")
        self.policy = find_policy(policy)
        if sampler == REWEIGHT and self.policy.joint:
            raise SpecError(
                f"policy '{self.policy.name}' scores no example by itself, which reweight needs; take another"
            )
        self.b, self.sampler, self.temperature, self.scale = b, sampler, temperature, scale
        self.chunks, self.joint_loss = chunks, joint_loss
        self.generator = torch.Generator().manual_seed(seed)

    def copied(self, b: int | None = None) -> Selector:
        """A selector that chooses `b`, as many as this one by default, by the random numbers that come next here. Neither
        moves the other's."""
        made = copy.copy(self)
        made.b, made.generator = self.b if b is None else b, torch.Generator()
        made.generator.set_state(self.generator.get_state())
        return made

    def __call__(
        self,
        *,
        online_loss: torch.Tensor | None = None,
        reference_loss: torch.Tensor | None = None,
        online_pairs: Pairs | None = None,
        reference_pairs: Pairs | None = None,
        age: torch.Tensor | None = None,
    ) -> Selection:
        """Choose by the losses that the policy needs, float [B] on one device; a joint policy needs embeddings [B, D].

        Returns a `Selection`: its `index` is int64 [b], ascending and without repeats, on the same device. Raises
        SpecError where the policy needs something that is not given, ValueError where a score is not finite or b is
        larger than B.
        """
        return self.choose(Losses(online_loss, reference_loss, online_pairs, reference_pairs, age))

    def choose(self, known: Losses, B: int | None = None, ranks: Ranks = ALONE) -> Selection:
        """The same as calling the selector. A uniform draw without any losses needs `B`, the number of examples. `ranks` that
        know the same share the work of a joint policy."""
        if self.policy.score is None or not self.policy.selects:
            return self._uniform(known, B)
        settings: dict[str, Any] = {
            "sampler": self.sampler,
            "temperature": self.temperature,
            "generator": self.generator,
        }
        if self.policy.joint:
            if known.reference_pairs is None:
                raise SpecError(
                    f"policy '{self.policy.name}' chooses by embeddings; give reference_pairs, or "
                    "SuperBatches(..., embeddings=True)"
                )
            if self.policy.online != "none" and known.online_pairs is None:
                raise SpecError(f"policy '{self.policy.name}' chooses by embeddings; give online_pairs")
            return select_jointly(
                known.online_pairs if self.policy.online != "none" else None,
                known.reference_pairs,
                self.b,
                loss=self.joint_loss or _loss_of(known),
                score=self.policy.score,
                n_chunks=self.chunks,
                scale=self.scale,
                ranks=ranks,
                **settings,
            )
        given = [known.online_B, known.reference_B, known.past_B, known.chosen_B, known.prior_B]
        B = max((len(x) for x in given if isinstance(x, torch.Tensor) and x.dim()), default=0) if B is None else B
        known = checked(known, B)
        self._refuse_missing(known)
        score_B = self.scale * one_each(f"the score of policy '{self.policy}'", self.policy.score(known), B)
        if self.policy.prunes:
            index, weight_B = prune(score_B, self.b, generator=self.generator)
            return Selection(index, score_B, known.online_B, known.reference_B, weight_B)
        if self.sampler == REWEIGHT:
            if len(score_B) != self.b:
                raise SpecError(
                    f"reweight drops nothing, and b is {self.b} of {len(score_B)} examples; choose all, or sample"
                )
            index = torch.arange(self.b, device=score_B.device)
            return Selection(index, score_B, known.online_B, known.reference_B, reweight(score_B, self.temperature))
        index = select(score_B, self.b, **settings)
        return Selection(index, score_B, known.online_B, known.reference_B)

    def _refuse_missing(self, known: Losses) -> None:
        policy = self.policy
        if policy.online == "past" and known.past_B is None:
            raise SpecError(
                f"policy '{policy}' needs past losses; give curate.Losses(past_B=...), a scorer may return it"
            )
        if policy.online not in NO_SCORER and known.online_B is None and known.online_pairs is None:
            raise SpecError(
                f"policy '{policy}' needs online_loss; give it to the selector, or SubBatches an online model"
            )
        if policy.reference == "loss" and known.reference_B is None:
            raise SpecError(
                f"policy '{policy}' needs reference_loss; give it to the selector, or SuperBatches the score table (scores=)"
            )

    def _uniform(self, known: Losses, B: int | None) -> Selection:
        given = next((x for x in (known.online_B, known.reference_B) if x is not None), None)
        size = len(given) if given is not None else B
        if size is None:
            raise SpecError(
                f"policy '{self.policy.name}' cannot know how many examples there are; give B, or their losses"
            )
        device = given.device if given is not None else torch.device("cpu")
        if size == self.b:
            return Selection(torch.arange(size, device=device))
        index = select(torch.zeros(size, device=device), self.b, generator=self.generator)
        return Selection(index, None, known.online_B, known.reference_B)

    def state_dict(self) -> dict[str, Any]:
        """The state of the random numbers, so that a resumed selector makes the same choices."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        (generator,) = parts_of(state, "Selector", "generator")
        self.generator.set_state(generator.cpu())  # also of a checkpoint that was mapped to a GPU


def _loss_of(known: Losses) -> ContrastiveLoss:
    pairs = [p for p in (known.online_pairs, known.reference_pairs) if p is not None]
    return "sigmoid" if all(p.bias for p in pairs) else "softmax"
