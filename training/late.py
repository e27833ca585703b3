"""Images that turn out to be bad after they were chosen.

Where any view of an image is made before the choice, a bad image is found and replaced then. Where a policy chooses
without pixels, it is found only now. The next example of the super-batch that was not chosen and can be decoded takes its
place, so that the choice is the same however many processes share the super-batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial

import torch

from ..datasets.readers import Failure
from ..errors import FailuresError
from ..scoring.selection import Selection
from .batch import SuperBatch
from .group import Group, attempt
from .views import LateViews


def made(batch: SuperBatch, selection: Selection) -> tuple[SuperBatch, Selection, list[Failure]]:
    """The super-batch with the late views of the chosen examples made, and the choice without those that cannot be decoded.
    These are the failures, but for examples that were given before. A collective where a group divides the super-batch.

    Raises FailuresError where too few are left.
    """
    views = batch.views
    if not isinstance(views, LateViews):
        return batch, selection, []
    group = batch.division.group if batch.division is not None else Group()
    B = len(batch.division or batch)
    asked = selection.index.tolist()
    chosen, bad = set(asked), dict[int, tuple[Failure, bool]]()
    while True:
        places = batch.division.held(asked) if batch.division is not None else {i: i for i in asked}
        looked, error = attempt(partial(views.look, [*places.values()]))
        views, failed = looked or (views, {})
        here = {i: (failed[place], views.is_first[place]) for i, place in places.items() if place in failed}
        (most,) = group.agree(error, len(here))
        new = {i: found for part in group.share(here) for i, found in part.items()} if most else {}
        if not new:
            break
        bad |= new
        chosen -= new.keys()
        asked = replacements(sorted(new), {*chosen, *bad}, B)
        if len(asked) < len(new):
            one, _ = new[min(new)]
            raise FailuresError(
                f"{len(bad):,} of the {B:,} examples of a super-batch cannot be decoded, too few are left to choose "
                f"{len(selection.index):,}; one of them: shard '{one.shard}', key '{one.key}', {one.stage}: {one.reason}"
            )
        chosen.update(asked)
    if bad:
        selection = replace(selection, index=torch.tensor(sorted(chosen), device=selection.index.device))
    return replace(batch, views=views), selection, [failure for failure, is_first in bad.values() if is_first]


def replacements(failed: Iterable[int], taken: Collection[int], B: int) -> list[int]:
    """For each of the failed, in turn, the next of B numbers that is not taken, from 0 again after the last; fewer where
    there are no more."""
    found: list[int] = []
    for i in failed:
        following = ((i + step) % B for step in range(1, B))
        free = next((j for j in following if j not in taken and j not in found), None)
        if free is not None:
            found.append(free)
    return found
