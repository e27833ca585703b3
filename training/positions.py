"""What the state of a stream of super-batches says, and the states of several ranks as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# Under this name the state of a stream holds that of the data set that is mixed in, and there, under PREFIX, what stands
# before the names of its shards.
MIX, PREFIX = "mix", "prefix"


def counts_of(state: Mapping[str, Any]) -> dict[str, int]:
    """The counts in a stream's state: an example that turned out to be bad after it was chosen is no usable one."""
    counts, bad = Counter(state["counts"]), state.get("bad_chosen", 0)
    if MIX in state:
        counts.update(state[MIX]["counts"])
    if bad:
        counts.update(failures=bad, examples=-bad)
    return dict(counts)


def skipped_of(state: Mapping[str, Any]) -> dict[str, str]:
    """The shards that could not be read, by name, with the reason."""
    found = {state.get(PREFIX, "") + name: reason for name, reason in state["skipped"].items()}
    return found | (skipped_of(state[MIX]) if MIX in state else {})


def merged(states: Sequence[dict[str, Any]], rank: int, before: Mapping[str, Any]) -> dict[str, Any]:
    """The state of all lanes, given that of each rank's own, as this rank has it. All ranks began with the state `before`."""
    owners = [states[lane % len(states)] for lane in range(len(states[0]["lanes"]))]
    began = before.get("counts", {})
    counts = Counter(began)
    for state in states:
        counts.update({name: n - began.get(name, 0) for name, n in state["counts"].items()})
    found = {
        **states[rank],
        "lanes": [state["lanes"][lane] for lane, state in enumerate(owners)],
        "lane_skips": [state["lane_skips"][lane] for lane, state in enumerate(owners)],
        "counts": dict(counts),
        "skipped": {name: reason for state in states for name, reason in state["skipped"].items()},
    }
    if MIX in found:
        found[MIX] = merged([state[MIX] for state in states], rank, before.get(MIX, {}))
    return found
