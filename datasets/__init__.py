"""What an example is and where it comes from: data-set specs, shard readers, decoding, preparers.

Names are imported when they are first used, so that options and help texts read no image library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .decoding import Geometry, decode
    from .readers import Example, Failure, read_shard
    from .shards import Shard, list_shards
    from .spec import Config, DatasetSpec, find_dataset, load_config
    from .targets import hash_target

_HOMES = {
    "Config": "spec",
    "DatasetSpec": "spec",
    "Example": "readers",
    "Failure": "readers",
    "Geometry": "decoding",
    "Shard": "shards",
    "decode": "decoding",
    "find_dataset": "spec",
    "hash_target": "targets",
    "list_shards": "shards",
    "load_config": "spec",
    "read_shard": "readers",
}
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

__getattr__ = lazily(__name__, _HOMES)
