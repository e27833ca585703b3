"""Laws of who trains on which chosen example. No process group is needed."""

import numpy as np
from curate.training.deal import deal, shares
from curate.training.division import Division
from curate.training.group import Group
from hypothesis import given, settings
from hypothesis import strategies as st

ranks_and_holders = st.integers(1, 9).flatmap(
    lambda ranks: st.tuples(st.just(ranks), st.lists(st.integers(0, ranks - 1), min_size=0, max_size=200))
)


@given(ranks_and_holders)
def test_every_rank_trains_on_its_share_and_only_the_surplus_moves(drawn):
    ranks, holders = drawn
    holder_b = np.array(holders, dtype=np.int64)
    trainer_b = deal(holder_b, ranks)
    held, trained = (np.bincount(x, minlength=ranks) for x in (holder_b, trainer_b))
    assert trained.max() - trained.min() <= 1
    assert trained.tolist() == shares(held.tolist())
    moved = int((trainer_b != holder_b).sum())
    assert moved == int(np.maximum(held - trained, 0).sum())
    # No rank both gives and takes.
    for rank in range(ranks):
        gives = ((holder_b == rank) & (trainer_b != rank)).any()
        takes = ((holder_b != rank) & (trainer_b == rank)).any()
        assert not (gives and takes)


@given(ranks_and_holders, st.integers(1, 5))
def test_ranks_that_only_score_are_dealt_nothing_and_the_others_equal_shares(drawn, training):
    scoring, holders = drawn
    holder_b = np.array(holders, dtype=np.int64) + training
    trained = np.bincount(deal(holder_b, training + scoring, training), minlength=training + scoring)
    assert trained.sum() == len(holders) and not trained[training:].any()
    assert trained[:training].max() - trained[:training].min() <= 1


@given(st.integers(1, 6), st.integers(1, 32), st.integers(0, 300), st.integers(0, 50))
@settings(max_examples=60)
def test_every_row_of_a_super_batch_has_one_holder_and_lanes_are_shared_evenly(ranks, lanes, more, step):
    holder_B = Division.of_step(Group(0, ranks), step, (lanes + more, lanes)).holder_B
    assert len(holder_B) == lanes + more
    held = np.bincount(holder_B, minlength=ranks)
    most = -(-(lanes + more) // lanes) * -(-lanes // ranks)
    assert held.max() <= most and (ranks > lanes or held.min() > 0)


def test_at_eight_ranks_about_a_fiftieth_of_the_chosen_moves():
    """B = 20,480, f = 0.8: random choices of 4,096 leave each rank within a few per cent of its share."""
    generator = np.random.default_rng(0)
    holder_B = Division.of_step(Group(0, 8), 0, (20_480, 32)).holder_B
    share = [
        np.mean(deal(holder_b, 8) != holder_b)
        for holder_b in (holder_B[np.sort(generator.permutation(20_480)[:4096])] for _ in range(20))
    ]
    assert 0.005 < np.mean(share) < 0.03
