"""The pool under random use: nothing twice, nothing lost, nothing older than allowed, and drawn as often as it should be."""

from itertools import permutations

import numpy as np
import pytest
import torch
from curate.scoring.selection import select
from curate.training.pool import COLUMNS, Entries, Pool


def entries(rows, epoch=0, version=0, loss=None):
    n = len(rows)
    losses = np.zeros(n) if loss is None else np.asarray(loss)
    whole = {"row": rows, "epoch": [epoch] * n, "version": [version] * n, "online_loss": losses}
    columns = {name: np.asarray(whole.get(name, np.zeros(n)), dtype=kind) for name, kind in COLUMNS.items()}
    return Entries(**columns, items=[f"{epoch}:{row}" for row in rows])


def became(pool):
    """How many of those that were added are accounted for."""
    gone = sum(n for why, n in pool.counts.items() if why != "added")
    return gone + len(pool) + pool.taken


@pytest.mark.parametrize("seed", range(8))
def test_under_random_use(seed):
    rng = np.random.default_rng(seed)
    size, age = int(rng.integers(8, 40)), int(rng.integers(1, 6))
    pool = Pool(size, age)
    order, epoch, step = list(rng.permutation(60)), 0, 0
    held, trained = [], set()
    for _ in range(300):
        action = rng.integers(5)
        if action <= 1:
            if len(order) < 5:
                order, epoch = list(rng.permutation(60)), epoch + 1
            rows, order = order[:5], order[5:]
            pool.add(entries(rows, epoch, max(0, step - int(rng.integers(0, age + 2)))))
        elif action == 2:
            b = min(4, len(pool))
            drawn = pool.draw(lambda free, b=b: rng.choice(len(free), b, replace=False))
            assert drawn.items == [f"{e}:{r}" for r, e in zip(drawn.row, drawn.epoch, strict=True)]
            held.append(drawn)
        elif action == 3 and held:
            done = held.pop(0)
            (pool.bad if rng.random() < 0.1 else pool.trained)(done)
            both = set(zip(done.row.tolist(), done.epoch.tolist(), strict=True))
            assert not both & trained  # no row twice in an epoch
            trained |= both
        else:
            step += 1
            pool.advance(step)
        free = pool.free()
        assert len(free) + pool.taken <= size
        assert len(set(free.row.tolist())) == len(free)
        assert (step - free.version <= age).all()
        assert became(pool) == pool.counts["added"]
        assert [item.split(":")[1] for item in free.items] == [str(row) for row in free.row]
        if rng.random() < 0.05:
            again = Pool(size, age)
            again.load_state_dict(pool.state_dict())
            assert became(again) == again.counts["added"] == pool.counts["added"]
            assert {*free.row} <= {*again.free().row}
            if not held:
                pool = again
    assert pool.counts["dropped_for_age"] and pool.counts["trained"]


def test_the_first_that_came_makes_room_and_a_newer_loss_replaces_an_older_one():
    pool = Pool(3, 10)
    pool.add(entries([1, 2, 3]))
    pool.add(entries([1], epoch=1, version=4))
    pool.add(entries([1], epoch=1, version=2))  # comes late
    assert pool.free().version.tolist() == [0, 0, 4]
    pool.add(entries([5], epoch=1))
    assert sorted(pool.free().row) == [1, 3, 5]
    assert pool.counts == {"added": 6, "replaced": 2, "evicted": 1}


def test_what_is_taken_is_neither_drawn_nor_dropped_nor_evicted():
    pool = Pool(2, 1)
    pool.add(entries([1, 2]))
    taken = pool.draw(lambda free: np.array([0, 1]))
    pool.advance(9)
    pool.add(entries([3], version=9))
    assert len(pool) == 0 and pool.taken == 2 and pool.counts["evicted"] == 1
    state = pool.state_dict()
    pool.trained(taken)
    assert pool.taken == 0 and pool.counts["trained"] == 2
    again = Pool(2, 9)
    again.load_state_dict(state)
    assert again.free().row.tolist() == [1, 2]  # nobody has trained on them


def test_how_often_each_is_drawn():
    """Two of four by Gumbel top-k, against the exact probability of every ordered pair."""
    loss = np.array([0.0, 0.5, 1.0, 2.0])
    weight = np.exp(loss)
    exact = np.zeros(4)
    for first, second in permutations(range(4), 2):
        exact[[first, second]] += weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
    generator = torch.Generator().manual_seed(0)
    found, n = np.zeros(4), 4000
    for _ in range(n):
        pool = Pool(4, 1)
        pool.add(entries([0, 1, 2, 3], loss=loss))
        drawn = pool.draw(lambda free: select(torch.from_numpy(free.online_loss), 2, generator=generator).numpy())
        found[drawn.row] += 1
    assert np.abs(found / n - exact).max() < 4 * np.sqrt(0.25 / n)
