import pytest
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.training.lanes import ShardLoader
from support.folders import touch


@pytest.mark.parametrize(("room", "fits"), [(8000, True), (7999, False)])
def test_what_fits_into_memory_is_counted_in_bytes_for_an_image_folder_too(tmp_path, room, fits):
    touch(tmp_path, *(f"cat/{i}.png" for i in range(8)), size=1000)
    spec = spec_from_table("d", {"train": str(tmp_path), "rows_per_shard": 2})
    settings = {"embeddings": False, "on_missing": "error", "cache_bytes": 0, "image_bytes": 1}
    assert ShardLoader(spec, list_shards(spec), None, host_bytes=room, **settings).keeps_all == fits
