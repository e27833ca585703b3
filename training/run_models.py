"""The models of a run: the learner, the online model, a reference that trains with them, and who scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import SpecError
from ..scoring.coarse import coarsened
from ..scoring.loading import find_model, load_model
from ..scoring.models import Model
from ..scoring.policies import NO_SCORER
from ..scoring.settings import Coarse, Precision
from ..scoring.tables.lookup import ScoreTable, open_scores
from . import moving_reference, startup
from .reference import Reference, note_geometry, note_views, open_reference
from .setup import Setup
from .trainee import Trainee


@dataclass(frozen=True)
class RunModels:
    """All models of a run. `scorer` scores super-batches: the online model or the learner, as coarse as it scores. So does
    `reference`, with `reference_forward`: the one behind the table or, where it is `moving`, the one that trains here. `twin`
    is the online model's, in a run that watches whether choosing pays."""

    learner: Trainee
    online: Trainee | None
    scorer: Model | None
    forward: Any
    table: ScoreTable | None
    reference: Model | None
    rescored: int
    moving: Trainee | None = None
    reference_forward: Any = None
    twin: Trainee | None = None

    @property
    def trainees(self) -> dict[str, Trainee]:
        found = {"learner": self.learner, "online": self.online, moving_reference.NAME: self.moving}
        return {name: trainee for name, trainee in found.items() if trainee}

    @property
    def trained(self) -> dict[str, Model]:
        return {name: trainee.model for name, trainee in self.trainees.items()}

    @property
    def saved(self) -> list[Model]:
        """Those whose weights checkpoints hold: the learner first, a reference that trains in the run last."""
        return [self.learner.model, *(one.model for one in (self.online, self.twin, self.moving) if one)]

    def join(self, rows: int, drawn: int) -> None:
        """Let all ranks step together, each on `rows` chosen examples or more, and `drawn` of the super-batch. A collective."""
        for trainee in self.trainees.values():
            trainee.join(drawn if trainee is self.moving else rows)


def build_models(setup: Setup) -> RunModels:
    """Build all, with the reference's table checked. Raises ModelError, TableError and SpecError where one does not fit."""
    options, device, log = setup.options, setup.device, setup.records.log
    policy = options.selection.chosen_policy

    def build(name: str, seed: int) -> Model:
        dataset = setup.dataset
        spec = find_model(name, task=dataset.task, num_classes=dataset.num_classes, config=setup.config)
        return load_model(spec, seed=seed)

    learner = build(options.learner, options.seed)
    online = twin = None
    if options.selection.online and policy.online in ("model", "either"):
        online = build(options.selection.online, startup.stream_seed(options.seed, "online"))
        if policy.probes and setup.group.size > 1:
            raise SpecError(
                f"policy '{policy}' probes in one process; start one, or take the policy that it would choose by"
            )
        twin = build(options.selection.online, startup.stream_seed(options.seed, "online")) if policy.probes else None
    opened = open_reference(
        *(options, setup.config, setup.dataset, setup.shards, device, log, setup.score_precision),
        verify=setup.group.is_first,
        opened=setup.opened,
    )
    scores = options.selection.reference_scores
    if setup.recorded is not None and setup.recorded.reads_table and scores:
        opened = Reference(setup.opened or open_scores(scores), None, 0)
    startup.check_policy(options, learner, opened.table)
    startup.refuse_other_reference(opened.table, setup.mix)
    compiled, fsdp = options.optimization.compile, options.sharing.fsdp
    settings: dict[str, Any] = {
        **options.optimization.stepping,
        "weighs": options.selection.weighs,
        "compiled": compiled if compiled is not None else device.type == "cuda" and not fsdp,
        "device": device,
        "precision": setup.precision,
        "group": setup.roles.trainers,
        "sync_bn": options.sharing.sync_bn,
    }
    lr = options.optimization.lr if options.optimization.lr is not None else learner.task.lr
    online_lr = options.optimization.online_lr if options.optimization.online_lr is not None else lr
    gathered: Precision = setup.precision if online or setup.precision == setup.score_precision else "fp32"
    shards = gathered if fsdp else None
    learner_trainee = Trainee(learner, lr=lr, fsdp=shards, **options.optimization.of_the_learner, **settings)
    online_trainee, twin_trainee = (Trainee(one, lr=online_lr, **settings) if one else None for one in (online, twin))
    moving = None
    if options.selection.reference_online:
        model = build(options.selection.reference_online, startup.stream_seed(options.seed, "reference"))
        asked_lr = options.selection.reference_lr
        rate = moving_reference.RATE * online_lr if asked_lr is None else asked_lr
        moving = Trainee(model, lr=rate, **{**settings, "weighs": False})

    asked = None if policy.online in NO_SCORER else online_trainee or learner_trainee
    coarse = startup.coarse_of(options.selection, opened.table)
    if coarse and fsdp and asked is learner_trainee:
        raise SpecError("--fsdp: a learner in shards cannot score with fewer pixels or patches; give --online NAME")
    scorer, forward = _scoring(asked, coarse)
    reference, reference_forward = _scoring(moving, coarse) if moving else (opened.model, None)
    note_geometry(reference if moving else opened.table, scorer, log)
    note_views(learner, online, log)
    return RunModels(
        *(learner_trainee, online_trainee, scorer, forward, opened.table, reference, opened.rescored),
        moving=moving,
        reference_forward=reference_forward,
        twin=twin_trainee,
    )


def _scoring(trainee: Trainee | None, coarse: Coarse) -> tuple[Model | None, Any]:
    """(a trainee's model as it scores, what computes its losses)."""
    if trainee is None:
        return None, None
    if not coarse:
        return trainee.model, trainee.forward
    model = coarsened(trainee.model, coarse)
    return model, torch.compile(model.module) if trainee.compiled else model.module
