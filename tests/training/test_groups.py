"""One sequence of super-batches and one choice, whatever the number of processes that share the work."""

from __future__ import annotations

import numpy as np
import pytest
from curate.datasets.spec import spec_from_table
from curate.errors import RankError, ShardError, SpecError
from curate.training.group import Group
from support.rank_work import choose, hangs_on_1
from support.ranks import run_ranks
from support.tars import read_tar, replace_member, write_tar

SIZES = (2, 3, 4)
STEPS = 24


@pytest.fixture(scope="module")
def uneven(digits, tmp_path_factory):
    """600 digits in seven shards of 10 to 160, one image of which cannot be decoded."""
    folder = tmp_path_factory.mktemp("uneven")
    members = [m for path in sorted((digits.root / "data/digits/train").glob("*.tar")) for m in read_tar(path)]
    start = 0
    for shard, count in enumerate((10, 160, 50, 90, 120, 30, 140)):
        write_tar(folder / f"{shard}.tar", members[2 * start : 2 * (start + count)])
        start += count
    bad = next(name for name, _ in read_tar(folder / "3.tar") if name.endswith(".png"))
    replace_member(folder / "3.tar", {bad: b"no image"})
    return folder


def spec_of(folder, shards="*"):
    return spec_from_table("uneven", {"train": f"{folder}/{shards}.tar", "task": "classification", "classes": 10})


def alone(spec, steps=STEPS, state=None, **options):
    return choose(Group(), spec, steps, state, options)


def in_ranks(ranks, spec, steps=STEPS, state=None, **options):
    return run_ranks(ranks, choose, spec, steps, state, options)


def check_same(single, ranks):
    """What the ranks were given is, together, what one process is given."""
    size = len(ranks)
    for step, expected in enumerate(single):
        given = [found[step] for found, _ in ranks]
        for got in given:
            assert got["drawn"] == expected["drawn"]
            assert got["index"] == expected["index"]
        assert sorted(name for got in given for name in got["held"]) == sorted(expected["drawn"])
        places = [place for got in given for place in got["positions"]]
        assert sorted(places) == list(range(len(expected["trained"])))
        for got in given:
            assert got["positions"] == sorted(got["positions"])
            assert got["trained"] == [expected["trained"][i] for i in got["positions"]]
            assert got["labels"] == [expected["labels"][i] for i in got["positions"]]
            assert np.array_equal(got["pixels"], expected["pixels"][got["positions"]])
        counts = [len(got["positions"]) for got in given]
        assert max(counts) - min(counts) <= 1
        assert sum(got["weight"] for got in given) == pytest.approx(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"cache_bytes": 0, "host_bytes": 1}], ids=["in memory", "a shard at a time"])
def test_the_sequence_and_the_choice_are_those_of_one_process(uneven, size, options):
    spec = spec_of(uneven)
    single, state = alone(spec, **options)
    ranks = in_ranks(size, spec, **options)
    check_same(single, ranks)
    for _, own in ranks:
        assert own["batches"] == state["batches"]
        assert own["selector"]["generator"].tolist() == state["selector"]["generator"].tolist()
    assert state["batches"]["counts"]["failures"] == 1
    assert 0 < sum(got["moved"] for got in ranks[0][0]) < STEPS * 21 / 2


def test_more_ranks_than_shards_train_on_equal_shares(uneven):
    spec = spec_of(uneven, "[13]")
    check_same(alone(spec)[0], in_ranks(3, spec))


def test_a_uniform_draw_needs_no_scores_and_moves_what_is_uneven(uneven):
    spec = spec_of(uneven)
    options = {"policy": "uniform", "size": 21}
    check_same(alone(spec, **options)[0], in_ranks(4, spec, **options))


def test_what_is_decoded_late_is_replaced_alike_where_it_turns_out_to_be_bad(uneven, tmp_path):
    for path in uneven.glob("*.tar"):
        members = read_tar(path)
        spoiled = {name for name, _ in [m for m in members if m[0].endswith(".png")][::9]}
        write_tar(tmp_path / path.name, [(name, b"no image" if name in spoiled else data) for name, data in members])
    spec = spec_of(tmp_path)
    single, state = alone(spec, steps=8, late=True)
    ranks = in_ranks(3, spec, steps=8, late=True)
    check_same(single, ranks)
    assert all(own["batches"] == state["batches"] for _, own in ranks)
    assert state["batches"]["bad_chosen"] > 1
    assert all(len(found["index"]) == 21 for found in single)


def test_two_one_four_two_continue_the_same_sequence(uneven):
    spec = spec_of(uneven)
    whole, last = alone(spec, 4 * 5)
    found, state = [], None
    for size in (2, 1, 4, 2):
        ranks = in_ranks(size, spec, 5, state)
        found.append(ranks)
        state = ranks[0][1]
    for part, ranks in enumerate(found):
        check_same(whole[5 * part : 5 * part + 5], ranks)
    assert state["batches"] == last["batches"]


@pytest.fixture
def cut(uneven, tmp_path):
    """The same data with a shard that ends in the middle."""
    for path in uneven.glob("*.tar"):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.name == "4.tar" else content)
    return spec_of(tmp_path)


TIGHT = {"cache_bytes": 0, "host_bytes": 1}


def test_a_bad_shard_on_one_rank_is_skipped_as_by_one_process(cut):
    single, state = alone(cut, max_bad_shards=1, **TIGHT)
    ranks = in_ranks(2, cut, max_bad_shards=1, **TIGHT)
    check_same(single, ranks)
    assert state["batches"]["skipped"].keys() == {"4"}
    assert all(own["batches"] == state["batches"] for _, own in ranks)


def test_one_ranks_bad_data_ends_all_with_its_error(cut):
    errors = in_ranks(3, cut, max_bad_shards=0, **TIGHT)
    assert all(isinstance(error, ShardError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1
    assert "4.tar" in str(errors[0])


def test_a_view_that_cannot_be_made_of_nothing_needs_a_lane_for_every_rank(uneven):
    from curate.training.superbatch import SuperBatches

    with pytest.raises(SpecError, match="3 ranks share 2 lanes"):
        SuperBatches(spec_of(uneven, "[13]"), 8, views={"image": lambda content: content}, group=Group(0, 3))


def test_selectors_that_would_choose_differently_are_refused(uneven):
    errors = in_ranks(2, spec_of(uneven), selector_seed="rank")
    assert all(isinstance(error, SpecError) and "selector's seed" in str(error) for error in errors), errors


def test_fewer_chosen_than_ranks_are_refused(uneven):
    for error in in_ranks(3, spec_of(uneven), b=2):
        assert isinstance(error, SpecError) and "3 ranks" in str(error)


def test_more_chosen_than_drawn_are_refused(uneven):
    with pytest.raises(SpecError, match="b is 61 and a super-batch has 60"):
        alone(spec_of(uneven), b=61)


def test_a_store_that_hangs_on_one_rank_ends_all(uneven):
    found = run_ranks(2, hangs_on_1, spec_of(uneven), minutes=1 / 60)
    assert all(isinstance(error, RankError) and "lost the others" in str(error) for error in found)
