"""The collectives of a group, on 1 to 4 processes."""

import time

import pytest
import torch.distributed as dist
from curate.errors import RankError, ShardError, SpecError
from curate.training.group import Group
from support.rank_work import dies, everything, fails_on, rows_of
from support.ranks import run_ranks

SIZES = (1, 2, 3, 4)


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_gets_what_was_sent_to_it(size):
    found = run_ranks(size, everything)
    for rank, got in enumerate(found):
        assert [part.tolist() for part in got["gathered"]] == [rows_of(r).tolist() for r in range(size)]
        for sender, part in enumerate(got["received"]):
            rows = 0 if rank == size - 1 else 1 + sender + rank
            assert part.shape == (rows, 2)
            assert (part == 10 * sender + rank).all()
        assert got["shared"] == [{"rank": r, "key": "é" * r} for r in range(size)]
        assert got["first"] == "made by 0"
        assert got["sum"] == [size, sum(range(size))]
        assert got["broadcast"] == [[0.0, 0.0, 0.0], 0]
        assert got["of the last"] == [size - 1]
        assert got["part"] == ((rank - 1, size - 1, sum(range(size))) if rank else (0, 1, 0))


def test_one_ranks_error_is_raised_on_all_as_what_it_is():
    for rank, error in enumerate(run_ranks(3, fails_on, [1, 2])):
        assert isinstance(error, ShardError)
        assert str(error) == ("shard '2.tar' is cut" if rank == 2 else "shard '1.tar' is cut")
        assert getattr(error, "rank", rank) == (1 if rank == 0 else rank)


def test_an_error_that_is_not_ours_keeps_its_name_elsewhere():
    own, *others = run_ranks(3, fails_on, [0])
    assert isinstance(own, OSError)
    assert all(isinstance(error, RankError) and "No space left" in str(error) for error in others)


def test_a_killed_rank_ends_the_others_in_seconds_with_one_line():
    started = time.monotonic()
    found = run_ranks(3, dies)
    assert time.monotonic() - started < 200
    assert found[1] is None
    assert all(isinstance(error, RankError) and "last saved state" in str(error) for error in (found[0], found[2]))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Group()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Group()),
        # A shell inside an allocation, or a batch script: srun has started no step.
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, Group()),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Group()),
    ],
)
def test_a_single_process_needs_no_group(environment, expected):
    assert Group.from_env(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
    ],
)
def test_variables_that_make_no_sense_are_one_line(environment):
    with pytest.raises(SpecError, match="RANK"):
        Group.from_env(environment)


@pytest.mark.parametrize("minutes", ["0", "-1", "five", "nan", "inf"])
def test_a_time_out_that_is_no_number_of_minutes_is_one_line(minutes):
    with pytest.raises(SpecError, match=f"CURATE_TIMEOUT_MINUTES is '{minutes}', expected a number of minutes above 0"):
        Group.from_env({"RANK": "0", "WORLD_SIZE": "2", "CURATE_TIMEOUT_MINUTES": minutes})


def test_ranks_wait_as_long_as_the_variable_says(monkeypatch):
    found = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **given: found.append(given["timeout"].total_seconds()))
    for more in ({}, {"CURATE_TIMEOUT_MINUTES": "0.5"}):
        Group.from_env({"RANK": "0", "WORLD_SIZE": "2", **more})
    assert found == [300, 30]


def test_passes_that_lose_the_other_ranks_say_so():
    with pytest.raises(RankError, match="rank 0 of 2 lost the others"), Group(0, 2).averaging():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:45783")
    for group, message in ((Group(0, 2), "mat1 and mat2 shapes cannot be multiplied"), (Group(), "Connection closed")):
        with pytest.raises(RuntimeError, match=message), group.averaging():
            raise RuntimeError(message)
