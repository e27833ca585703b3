import pytest
from curate.errors import TableError
from curate.pipelines.runner import runner_of
from curate.pipelines.score_reference import score_reference
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
