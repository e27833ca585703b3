"""Options that were given and change nothing in this run. They are said, since nothing that a user gave is ignored in
silence; an option that needs another option is refused where it is defined."""

from __future__ import annotations

from collections.abc import Iterable

from ..options import flag, options_of
from ..scoring.policies import NO_SCORER
from .options import RunOptions


def unused(options: RunOptions) -> list[str]:
    """The options that are not at their defaults and have no effect under the run's policy, such as `online`."""
    asked, policy = options.selection, options.selection.chosen_policy
    replays = asked.replay is not None
    online = policy.online in ("model", "either")
    table = asked.reference_scores is not None and options.uses_table
    scores = policy.online not in NO_SCORER or asked.reference_online is not None
    scores = scores or (table and asked.on_missing == "score")
    draws = policy.selects and not policy.prunes and not replays
    scaled = draws and (asked.sampler != "topk" or policy.joint)
    used = {
        "online": online,
        "online_lr": online or (asked.reference_online is not None and asked.reference_lr is None),
        "reference_scores": table or replays,
        "prior_scores": policy.prior,
        "reference": table,
        "trust_table": table,
        "on_missing": table or replays,
        "charge_reference": table or replays,
        "mix_scores": options.uses_table or replays,
        "filter_ratio": policy.selects,
        "selections_every": policy.selects,
        "keep": policy.filters,
        "keep_by": policy.filters,
        "sampler": draws,
        "temperature": scaled,
        "score_scale": scaled,
        "chunks": policy.joint,
        "joint_loss": policy.joint,
        "score_size": scores or table,
        "score_patch_dropout": scores or table,
        "score_precision": scores,
        "micro_batch": scores,
    }
    values, known = options.to_dict(), options_of(RunOptions)
    return [name for name, is_used in used.items() if not is_used and values[name] != known[name].default]


def unused_by_all(runs: Iterable[RunOptions]) -> list[str]:
    """Those that no run has a use for."""
    found = [unused(run) for run in runs]
    return [name for name in found[0] if all(name in others for others in found)]


def unused_line(names: Iterable[str], why: str) -> str:
    """`--online, --keep: of no effect with policy 'uniform'`."""
    return f"{', '.join(map(flag, names))}: of no effect {why}"
