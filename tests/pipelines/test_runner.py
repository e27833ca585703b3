import pytest
from curate.errors import TableError
from curate.pipelines.local_workers import WORKER_NUMBER, worker_number
from curate.pipelines.runner import runner_of, workers_by_default
from curate.pipelines.score_reference import score_reference
from curate.scoring.forward import device_of
from support.commands import silent

DASK = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"


@pytest.mark.parametrize(
    ("arguments", "partition_size"),
    [
        ([DASK], "1"),
        ([DASK, "--dask_partition_size=7"], "7"),
        ([DASK, "--dask_npartitions=3"], None),
        (["--runner=PrismRunner"], None),
        ([], None),
    ],
)
def test_a_shard_is_a_task_of_its_own_on_dask_unless_told_otherwise(arguments, partition_size):
    _, options = runner_of(arguments, 500)
    assert options.get_all_options(retain_unknown_options=True).get("dask_partition_size") == partition_size


def test_workers_that_write_to_a_folder_of_their_own_are_an_error(digits):
    # fsspec's memory:// is a folder that every process has to itself, as a cluster's machines have their disks.
    options = digits.options("memory://apart", runner_options=("--direct_num_workers=2",))
    with pytest.raises(TableError, match=r"6 of 6 shards are missing, such as '00000'.*a URL"):
        score_reference(options, silent)


@pytest.mark.parametrize(
    ("gpus", "cores", "shards", "workers"),
    [
        (0, 16, 1000, 16),
        (0, 16, 3, 3),
        (1, 16, 1000, 1),
        (8, 64, 1000, 8),
        (8, 64, 5, 5),
        (8, 4, 1000, 8),
        (0, 2, 0, 1),
    ],
)
def test_a_worker_for_each_gpu_else_for_each_core(gpus, cores, shards, workers):
    assert workers_by_default(gpus, cores, shards) == workers


def test_workers_are_dealt_to_the_gpus_by_their_numbers(monkeypatch):
    assert [str(device_of(worker, 8)) for worker in (0, 3, 7, 8, 9)] == [
        "cuda:0",
        "cuda:3",
        "cuda:7",
        "cuda:0",
        "cuda:1",
    ]
    assert [str(device_of(worker, 0)) for worker in (None, 3)] == ["cpu", "cpu"]
    assert str(device_of(None, 8)) == "cuda", "which a process may set itself"
    monkeypatch.setenv(WORKER_NUMBER, "3")
    assert worker_number() == 3
    monkeypatch.delenv(WORKER_NUMBER)
    assert worker_number() is None
