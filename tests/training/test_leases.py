"""Leases under random losses: each row is scored once an epoch, whoever is lost, and late answers are refused."""

import json
from collections import Counter

import numpy as np
import pytest
from curate.training.leases import Plan, rounds_of

ROWS = [7, 0, 25, 12, 3]


def plan_of(seed=0, size=4, lanes=3):
    return Plan(seed=seed, lanes=lanes, rows=ROWS, size=size)


@pytest.mark.parametrize("seed", range(8))
def test_every_row_once_an_epoch(seed):
    rng = np.random.default_rng(seed)
    plan = plan_of(seed, size=int(rng.integers(1, 9)))
    scored, open_leases, lost = Counter(), [], []
    while min(plan.epoch, 4) < 4:
        choice = rng.integers(5)
        if choice <= 1:
            most = int(rng.integers(1, 2 * plan.size))
            lease = plan.lease(f"scorer {rng.integers(3)}", most)
            assert 0 < len(lease) <= min(most, plan.size) and lease.last <= ROWS[lease.shard]
            open_leases.append(lease)
        elif choice == 2 and open_leases:
            lease = open_leases.pop(int(rng.integers(len(open_leases))))
            assert plan.done(lease)
            scored.update((lease.epoch, lease.shard, row) for row in plan.rows_of(lease).tolist())
        elif choice == 3 and open_leases:
            lease = open_leases.pop(0)
            plan.lost(lease)
            lost.append(lease)
        elif lost and rng.random() < 0.5:
            assert not plan.done(lost.pop())  # it comes back after all
        elif rng.random() < 0.05:
            plan.leave("scorer 1")
            again = plan_of(seed, plan.size)
            again.load_state_dict(json.loads(json.dumps(plan.state_dict())))
            plan, open_leases, lost = again, [], []  # what was open is handed out again
    for lease in open_leases:
        plan.lost(lease)
    while plan._again:  # the rest of the epochs that are over
        lease = plan.lease("last")
        plan.done(lease)
        scored.update((lease.epoch, lease.shard, row) for row in plan.rows_of(lease).tolist())
    whole = {(epoch, shard, row) for epoch in range(4) for shard, n in enumerate(ROWS) for row in range(n)}
    assert {key for key in scored if key[0] < 4} == whole
    assert max(scored.values()) == 1


def test_the_order_is_that_of_the_seed_and_mixes_lanes():
    rounds = rounds_of(3, 1, 3, ROWS, 4)
    assert rounds == rounds_of(3, 1, 3, ROWS, 4) != rounds_of(3, 3, 3, ROWS, 4)
    assert all(len({lane for lane, _ in chunks}) == len(chunks) for chunks in rounds)
    assert len(rounds[0]) == 3


def test_a_scorer_keeps_its_lanes():
    plan = plan_of()
    first = [plan.lease("a"), plan.lease("b"), plan.lease("b")]
    assert len({(lease.shard, lease.first) for lease in first}) == 3
    holders = dict(plan._holder)
    second = [plan.lease("b"), plan.lease("a"), plan.lease("b")]
    assert {*second} and plan._holder == holders
    plan.leave("b")
    assert set(plan._holder.values()) == {"a"}
