"""What an example is and where it comes from: data-set specs, shard readers, decoding, preparers."""

from .decoding import Geometry, decode
from .readers import Example, Failure, hash_target, read_shard
from .shards import Shard, list_shards
from .spec import Config, DatasetSpec, find_dataset, load_config

__all__ = [
    "Config",
    "DatasetSpec",
    "Example",
    "Failure",
    "Geometry",
    "Shard",
    "decode",
    "find_dataset",
    "hash_target",
    "list_shards",
    "load_config",
    "read_shard",
]
