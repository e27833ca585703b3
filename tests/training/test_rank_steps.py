"""Training steps that ranks share against the same step of one process, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from curate.training.group import Group
from support.rank_runs import step_of
from support.ranks import run_ranks

# Whose of seven examples are whose: ranks hold unequal parts, in the order of the batch.
OWN = {2: [[0, 2, 4, 6], [1, 3, 5]], 3: [[0, 1, 5], [2, 4, 6], [3]]}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("kind", "ranks"), [("classes", 3), ("softmax", 2), ("softmax", 3), ("sigmoid", 3)])
def test_ranks_take_the_step_of_one_process(kind, ranks, accumulate):
    """Also with identical captions on two ranks, and with the parts of GradCache where one rank has a single pair."""
    (losses, weights), *_ = [step_of(Group(), kind, [list(range(7))], accumulate, 2)]
    for found, own in run_ranks(ranks, step_of, kind, OWN[ranks], accumulate, 2):
        assert found == pytest.approx(losses, rel=1e-9)
        for name, value in weights.items():
            np.testing.assert_allclose(own[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
