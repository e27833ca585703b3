"""Sub-batches: what a training loop consumes, and how one is chosen."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from ..datasets.decoding import View
from ..datasets.readers import Failure
from ..errors import DivergedError, SpecError, parts_of
from ..scoring.losses import Losses, Pairs, checked
from ..scoring.policies import UNIFORM, Policy
from ..scoring.ranks import ALONE, Ranks
from ..scoring.selection import NotFiniteError, Selection
from ..scoring.selector import Selector
from .batch import SuperBatch
from .copies import Copies
from .division import whole_losses
from .late import made
from .local import LocalSelector, everybodys, least_share
from .online_model import OnlineScorer, Scorer
from .refusals import refuse_unscored
from .score_ahead import Scored, ScoringThread, aged, losses_from_dict, losses_to_dict
from .scorer import caption_groups
from .sub_batch import SubBatch, sub_batch
from .superbatch import SuperBatches

Some = TypeVar("Some", bound=SuperBatch)


class SubBatches:
    """An endless stream of sub-batches: draws a super-batch, scores it, and chooses (steps 1 to 3 of Algorithm 1).

    `online` scores every super-batch and takes a step of its own on every sub-batch, before you get that sub-batch. `scorer`
    only scores. With neither, the selector gets what the score table has. Super-batches are moved to `device`.
    `timing` is entered around each part with its name: "data", "score", "select", "decode" (of the chosen) and "train" (the
    online model's step). `check` is called with every super-batch before anything is computed of it, and may raise.
    So is `charge` where a model scores; it may talk to other ranks. With `local`, each rank of a group chooses its share of
    b among its own rows, in proportion to them: nothing is exchanged, and the choice depends on the number of ranks.

    With `score_ahead`, the scoring of a super-batch begins that many super-batches before its turn, with the weights of that
    time; in a thread of its own if the scorer has a `snapshot`. Nothing after the super-batch numbered `last` is scored.

    `state_dict` has the stream's and the selector's state; the online model's weights and optimizer are yours to save.
    """

    def __init__(
        self,
        batches: SuperBatches,
        selector: Selector,
        *,
        online: OnlineScorer | None = None,
        scorer: Scorer | None = None,
        device: torch.device | str | None = None,
        timing: Callable[[str], AbstractContextManager[Any]] = lambda stage: nullcontext(),
        check: Callable[[SuperBatch], None] = lambda batch: None,
        charge: Callable[[SuperBatch], None] = lambda batch: None,
        local: bool = False,
        score_ahead: int = 0,
        last: int | None = None,
    ) -> None:
        if online is not None and scorer is not None:
            raise SpecError("online and scorer are both given; an online model is a scorer, drop one")
        if selector.policy.online != "none" and online is None and scorer is None:
            raise SpecError(f"policy '{selector.policy.name}' scores with a model; give online or scorer")
        if selector.policy.filters and batches.kept is None:
            raise SpecError(
                f"policy '{selector.policy.name}' filters the data set; give SuperBatches(..., kept=curate.keep_best(table, 0.5))"
            )
        refuse_unscored(selector.policy, batches)
        if selector.b > batches.size:
            raise SpecError(f"b is {selector.b} and a super-batch has {batches.size} examples; choose at most as many")
        if selector.b < batches.group.size:
            raise SpecError(
                f"b is {selector.b}, fewer than {batches.group.size} ranks; each trains on at least one example"
            )
        self.batches, self.selector = batches, selector
        self.group, self.training, self.trains = batches.group, batches.group.size, True
        self.online, self.scorer = online, online or scorer
        self.device, self.timing = device, timing
        where = torch.device("cpu" if device is None else device)
        self._copies = Copies(where) if where.type == "cuda" else None
        self.check, self.charge = check, charge
        unknown = {*(getattr(self.scorer, "views", None) or ())} - {*batches.views}
        if unknown:
            raise SpecError(
                f"the scorer's views name {', '.join(sorted(unknown))}; the stream has {', '.join(batches.views)}"
            )
        if score_ahead < 0:
            raise SpecError(f"score_ahead is {score_ahead}, expected at least 0 super-batches")
        if score_ahead and self._seen_before_the_choice() == ():
            raise SpecError(f"score_ahead is {score_ahead} and no model scores; leave it out")
        if score_ahead and local:
            raise SpecError("a local choice is made by the present weights; leave score_ahead out, or choose globally")
        self.score_ahead, self.last = score_ahead, last
        self._waiting: deque[Scored] = deque()
        self._turn: dict[str, Any] = {}
        self._stored: deque[Losses] = deque()
        self._thread = ScoringThread(device) if score_ahead and hasattr(self.scorer, "snapshot") else None
        self._local = LocalSelector(selector, batches.group) if local else None
        self.local = local and batches.group.size > 1
        self._scores = selector.policy.selects and not selector.policy.prunes
        self.least_rows = selector.b // batches.group.size  # of a rank, in any step
        if self.local:
            self.least_rows = least_share(batches.group, batches.lanes, batches.size, selector.b)

    def __iter__(self) -> Iterator[SubBatch]:
        """From where the stream stands, until it is closed. Raises DivergedError where a score is not finite."""
        self._refuse_differences()
        policy: Policy | None = None
        while self.selector.policy is not policy:  # it chooses otherwise
            policy = self.selector.policy
            yield from self._chosen_by(policy)

    def _refuse_differences(self) -> None:
        selector = self.selector
        state = hashlib.sha256(selector.generator.get_state().numpy().tobytes()).hexdigest()[:16]
        names = ("b", "sampler", "temperature", "scale", "chunks", "joint_loss")
        settings = {name: getattr(selector, name) for name in names}
        how = {"choice": "local" if self.local else "global", "score_ahead": self.score_ahead}
        self.group.refuse_differences({**settings, "policy": selector.policy.name, "selector's seed": state, **how})

    def meanwhile(self) -> None:
        """On a rank that does not train: its work while the others take a step."""

    def draw_uniformly(self) -> None:
        """Choose nothing and score nothing, from the next super-batch on."""
        self.selector.policy, self.scorer, self.charge = UNIFORM, None, lambda batch: None

    def _chosen_by(self, policy: Policy) -> Iterator[SubBatch]:
        """As long as this is the selector's policy."""
        selector, ahead = self.selector, self._seen_before_the_choice()
        if ahead is not None and not ahead and self.batches.group.size == 1 and not selector.policy.prunes:
            yield from self._chosen_ahead()
            return
        for batch, known in self._scored(self.batches.stream(lambda batch: batch, ahead, self.score_ahead)):
            if self.local:
                sub = self._chosen_locally(batch, known)
            else:
                with self.timing("select"):
                    selection = self._choose(selector, known, len(batch.division or batch), self.batches.group)
                with self.timing("decode"):
                    batch, selection, failures = made(batch, selection)
                    self.batches.count_chosen(failures)
                    sub = sub_batch(batch, selection)
            self._step_online(sub)
            yield sub
            if selector.policy is not policy:
                return

    def _scored(self, source: Iterator[SuperBatch]) -> Iterator[tuple[SuperBatch, Losses]]:
        """Each super-batch in its turn, with its losses. It was begun to be scored `score_ahead` super-batches before."""
        waiting, newest = self._waiting, 0
        while True:
            while len(waiting) <= self.score_ahead and (not waiting or newest != self.last):
                with self.timing("data"):
                    batch = next(source, None)
                if batch is None:  # closed
                    return
                newest = batch.number
                with self.timing("score"):
                    waiting.append(self._begun(batch))
            with self.timing("score"):
                known = waiting[0].losses()
            one = waiting.popleft()
            self._turn = one.state
            yield one.batch, known

    def _begun(self, batch: SuperBatch) -> Scored:
        """A super-batch whose scoring is begun, or was before a checkpoint."""
        state = self.batches.own_state()
        if self._stored:
            return Scored(self._here(batch), state, known=self._stored.popleft())
        self.charge(batch)
        scorer: Any = self.scorer
        whole: Callable[[], AbstractContextManager[None]] = getattr(scorer, "whole", nullcontext)
        with whole(), self.batches.group.together():
            self.check(batch)
            batch = self._here(batch)
            if self._thread is None:
                known = self._known(scorer, batch)
            else:
                self._thread.wait()  # one copy of the weights serves all
                begun = self._thread.begin(partial(self._known, scorer.snapshot(), batch))
        if self._thread is None:
            return Scored(batch, state, known=self._everybodys(known, batch))

        def found() -> Losses:
            with self.batches.group.together():
                known = begun()
            return self._everybodys(known, batch)

        return Scored(batch, state, found)

    def _everybodys(self, known: Losses, batch: SuperBatch) -> Losses:
        """What all ranks know of a super-batch, with the age that it has in its turn. A collective."""
        known = aged(known, self._age(batch.number), len(batch))
        return known if batch.division is None or self.local else whole_losses(known, batch.division)

    def _age(self, number: int) -> int:
        """How many steps old the losses of this super-batch are in its turn."""
        return min(self.score_ahead, number - 1)

    def _here(self, batch: Some) -> Some:
        """The batch on the device. The next one's copy begins, if that one is made."""
        here: Any = batch
        if self._copies is None:
            here = batch if self.device is None else batch.to(self.device)
        else:
            here = self._copies.arrived(batch)
            upcoming = self.batches.next_if_made()
            if upcoming is not None:
                self._copies.begin(upcoming[0] if isinstance(upcoming, tuple) else upcoming)
        found: Some = here
        return found

    @property
    def views_ahead(self) -> list[View]:
        """The views that are made of all examples; the others are made of the chosen ones."""
        names = self._seen_before_the_choice()
        return [view for name, view in self.batches.views.items() if names is None or name in names]

    def _seen_before_the_choice(self) -> Collection[str] | None:
        """The views that the choice needs of all examples; None for all views, also where all examples are chosen."""
        if self.selector.b == self.batches.size:
            return None
        if not self.selector.policy.selects or self.scorer is None:
            return ()
        return getattr(self.scorer, "views", None)

    def _chosen_ahead(self) -> Iterator[SubBatch]:
        """Where no model is asked, the choice is made, and what is chosen decoded, in the thread that reads ahead."""
        selector = self.selector.copied()

        def chosen(batch: SuperBatch) -> tuple[SubBatch, list[Failure], torch.Tensor]:
            self.check(batch)
            selection = self._choose(selector, self._known(self.scorer, batch), len(batch))
            batch, selection, failures = made(batch, selection)
            return sub_batch(batch, selection), failures, selector.generator.get_state()

        source = self.batches.stream(chosen, ())
        while True:
            with self.timing("data"):
                found = next(source, None)
                if found is None:  # closed
                    return
                sub, failures, state = found
                self.batches.count_chosen(failures)
            self.charge(sub.drawn)
            with self.timing("select"):
                self.selector.generator.set_state(state)
                sub = self._here(sub)
            self._step_online(sub)
            yield sub

    def _chosen_locally(self, batch: SuperBatch, known: Losses) -> SubBatch:
        """What this rank chooses of its own rows, as one process would of a super-batch of these. A collective."""
        group, division = self.batches.group, batch.division
        assert self._local is not None and division is not None
        with group.together():
            with self.timing("select"):
                selector, before = self._local.of_step(division)
                selection = self._choose(selector, known, len(batch))
            with self.timing("decode"):
                own, selection, failures = made(replace(batch, division=None), selection)
                sub = sub_batch(own, selection)
        with self.timing("decode"):
            self.batches.count_chosen(everybodys(failures, group))
        return replace(
            sub,
            drawn=replace(own, division=division),
            positions=sub.positions + before,
            weight=len(sub) * group.size / self.selector.b,
        )

    def _step_online(self, sub: SubBatch) -> None:
        if self.online is not None:
            with self.timing("train"), self.group.averaging():
                self.online.step(sub)

    def _known(self, scorer: Scorer | None, batch: SuperBatch) -> Losses:
        if not self.selector.policy.selects:
            return Losses()
        found = scorer.score(batch) if scorer is not None else None
        if not isinstance(found, Losses):
            found = Losses(found, batch.reference_loss, reference_pairs=self._stored_pairs(batch))
        return checked(found, len(batch))

    def _stored_pairs(self, batch: SuperBatch) -> Pairs | None:
        """The table's embeddings, for a joint policy that needs no other."""
        table = self.batches.table
        if not self.selector.policy.joint or batch.reference_pairs is None or table is None:
            return None
        scale, bias = table.manifest.get("scale") or 1.0, table.manifest.get("bias") or 0.0
        group_B = caption_groups(batch).to(batch.reference_pairs[0].device)
        return Pairs(*batch.reference_pairs, scale, bias, group_B)

    def _choose(self, selector: Selector, known: Losses, B: int, ranks: Ranks = ALONE) -> Selection:
        try:
            return selector.choose(known, B, ranks)
        except NotFiniteError as e:
            raise DivergedError(f"a score is nan or infinite ({e}): the online model or the learner diverged") from e

    def close(self) -> None:
        self.batches.close()
        if self._thread is not None:
            self._thread.close()

    def metrics(self, step: int) -> dict[str, Any]:
        """What a line of metrics has of how this step was chosen."""
        return {"score_age": self._age(step)} if self.score_ahead else {}

    def told(self) -> str:
        """What a line of progress has of it."""
        return ""

    def examples_scored(self, steps: int) -> int:
        """How many examples were scored in this many steps."""
        return steps * self.batches.size if self._scores else 0

    def own_state(self) -> dict[str, Any]:
        """Where the stream of super-batches stands behind the one that was chosen from last: this rank's part."""
        now = self.batches.own_state()
        return {**self._turn, "bad_chosen": now["bad_chosen"]} if self._waiting else now

    def whole_state(self, own: dict[str, Any]) -> dict[str, Any]:
        """The state of the stream of super-batches when each rank's part was `own`. A collective."""
        return self.batches.whole_state(own)

    def drawn_state(self) -> dict[str, Any]:
        """The same behind what was drawn last. A collective."""
        return self.whole_state(self.batches.own_state())

    def scored(self) -> list[dict[str, Any]]:
        """The losses of the super-batches that wait for their turn, as a checkpoint holds them. A collective."""
        return [losses_to_dict(one) for one in (*(one.losses() for one in self._waiting), *self._stored)]

    def restore(self, scored: Iterable[dict[str, Any]]) -> None:
        """Take these losses for the next super-batches; `state_dict` of the stream is loaded before."""
        self._waiting.clear()
        self._stored = deque(losses_from_dict(one, self.device) for one in scored)

    def resume(self, batches: Mapping[str, Any], scored: Iterable[dict[str, Any]]) -> None:
        """Continue from this state of the stream of super-batches, with what waits for its turn. Raises RunError."""
        self.batches.load_state_dict(batches)
        self.restore(scored)

    def state_dict(self) -> dict[str, Any]:
        state = {"batches": self.whole_state(self.own_state()), "selector": self.selector.state_dict()}
        return {**state, "scored": self.scored()} if self.score_ahead else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        batches, selector = parts_of(state, "SubBatches", "batches", "selector")
        self.resume(batches, state.get("scored", ()))
        self.selector.load_state_dict(selector)
