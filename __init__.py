"""Choose what to train on, with every FLOP of the choosing counted.

    table = curate.open_scores("scores")                        # what a reference model said of every example
    batches = curate.SuperBatches("digits", 256, views={"learner": curate.Geometry(size=8)}, scores=table)
    selector = curate.Selector("learnability", 64)
    for sub in curate.SubBatches(batches, selector, online=online_model):
        train_step(sub.views["learner"], sub.targets)

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .datasets.decoding import Geometry
    from .errors import CurateError
    from .pipelines.options import ScoreOptions
    from .pipelines.score_reference import score_reference
    from .scoring.flops import ComputeLedger as Ledger
    from .scoring.joint import select_jointly
    from .scoring.losses import Losses, Pairs
    from .scoring.policies import POLICIES, Policy
    from .scoring.selection import Selection, select
    from .scoring.selector import Selector
    from .scoring.tables.keep import Kept, keep_best
    from .scoring.tables.lookup import ScoreTable, open_scores
    from .training.batch import SuperBatch
    from .training.group import Group
    from .training.mixture import Mix
    from .training.online_model import OnlineModel
    from .training.options import RunOptions
    from .training.records import SelectionLog
    from .training.run import train
    from .training.sub import SubBatches
    from .training.sub_batch import SubBatch
    from .training.superbatch import SuperBatches

__version__ = "0.2.0.dev0"

_HOMES = {
    "POLICIES": "scoring.policies",
    "CurateError": "errors",
    "Geometry": "datasets.decoding",
    "Group": "training.group",
    "Kept": "scoring.tables.keep",
    "Ledger": "scoring.flops:ComputeLedger",
    "Losses": "scoring.losses",
    "Mix": "training.mixture",
    "OnlineModel": "training.online_model",
    "Pairs": "scoring.losses",
    "Policy": "scoring.policies",
    "RunOptions": "training.options",
    "ScoreOptions": "pipelines.options",
    "ScoreTable": "scoring.tables.lookup",
    "Selection": "scoring.selection",
    "SelectionLog": "training.records",
    "Selector": "scoring.selector",
    "SubBatch": "training.sub_batch",
    "SubBatches": "training.sub",
    "SuperBatch": "training.batch",
    "SuperBatches": "training.superbatch",
    "keep_best": "scoring.tables.keep",
    "open_scores": "scoring.tables.lookup",
    "score_reference": "pipelines.score_reference",
    "select": "scoring.selection",
    "select_jointly": "scoring.joint",
    "train": "training.run",
}
__all__ = [
    "POLICIES",
    "CurateError",
    "Geometry",
    "Group",
    "Kept",
    "Ledger",
    "Losses",
    "Mix",
    "OnlineModel",
    "Pairs",
    "Policy",
    "RunOptions",
    "ScoreOptions",
    "ScoreTable",
    "Selection",
    "SelectionLog",
    "Selector",
    "SubBatch",
    "SubBatches",
    "SuperBatch",
    "SuperBatches",
    "keep_best",
    "open_scores",
    "score_reference",
    "select",
    "select_jointly",
    "train",
]

__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
