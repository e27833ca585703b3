"""Records of files that a test made, as a data set gives them."""

from pathlib import Path

from curate.datasets.readers import Failure, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table

from .tars import write_tar

CLASSES = ["cat", "dog", "10"]


def read(path, **table):
    """All records of one file as a data set with classes; `path` may be a folder."""
    spec = spec_from_table("d", {"train": str(path), "classes": CLASSES, **table})
    return [record for shard in list_shards(spec) for record in read_shard(spec, shard)]


def read_members(folder, *members, **table):
    return read(write_tar(Path(folder) / "0.tar", members), **table)


def reasons(records):
    return [(r.row, r.key, r.stage, r.reason) for r in records if isinstance(r, Failure)]
