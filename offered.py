"""Which options a command offers, where these are not all that its options class has."""

from __future__ import annotations

from dataclasses import MISSING, replace

from .command import without
from .options import options_of
from .studies.options import PlanOptions, ProbeOptions
from .training.options import RunOptions

RUN = options_of(RunOptions)
# A replay trains on the data set of the run that it replays.
OF_THE_RUN = f"{RUN['dataset'].help} Required, except with --replay, which takes it from the run."
TRAINED = RUN | {"dataset": replace(RUN["dataset"], default=None, help=OF_THE_RUN)}
BUDGET, ASYNCHRONOUS = (
    [o.name for o in RUN.values() if o.concern == concern] for concern in ("budget", "asynchronous")
)
# All runs of a comparison read one score table.
MOVING = ("reference_online", "reference_every", "reference_lr", "refresh_scores")
# A comparison sets policy, seed, budget, folder and name of its runs, and measures every one.
NAMED = "policy seed out name evaluate evaluate_every keep_every follow replay".split()
OWN = (*BUDGET, *ASYNCHRONOUS, *NAMED, *MOVING)
COMPARED = without(RunOptions, *OWN) | {
    "budget_flops": replace(
        RUN["budget_flops"], concern="", default=MISSING, help="Take this many FLOPs as 1x, such as 2e13, 20TF or 1EF."
    ),
    "selections_every": replace(
        RUN["selections_every"],
        default=5,
        help="Record a super-batch and what was chosen of it every N steps.",
    ),
}
PLANNED = "Plan with this reference. Default: the model of the table, or one as large as the online model."
NOT_PLANNED = (
    *ASYNCHRONOUS,
    *"policy out name evaluate evaluate_every keep_every report_to follow replay refresh_scores".split(),
)
PLAN = without(PlanOptions, *NOT_PLANNED) | {"reference": replace(RUN["reference"], help=PLANNED)}
PROBE = options_of(ProbeOptions) | {"probe": replace(options_of(ProbeOptions)["probe"], default=None)}
