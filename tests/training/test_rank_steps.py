"""Training steps that ranks share against the same step of one process, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from curate.training.group import Group
from support.rank_runs import steps_of
from support.ranks import run_ranks

# Whose of seven examples are whose: ranks hold unequal parts, and identical captions lie on several of them.
OWN = {2: [[0, 2, 4, 6], [1, 3, 5]], 4: [[0, 6], [1, 3], [2, 5], [4]]}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_take_the_steps_of_one_process(ranks):
    """Classes, CLIP's loss and SigLIP's; also in parts (GradCache), where one rank has a single pair."""
    alone = steps_of(Group(), [list(range(7))])
    for found in run_ranks(ranks, steps_of, OWN[ranks]):
        for case, (losses, weights) in alone.items():
            assert found[case][0] == pytest.approx(losses, rel=1e-9), case
            for name, value in weights.items():
                np.testing.assert_allclose(found[case][1][name], value, rtol=1e-6, atol=1e-9, err_msg=f"{case} {name}")
