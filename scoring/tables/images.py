"""A score table as the index of its data set: images of single examples, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from ...datasets.ranges import Place, read_images
from ...datasets.shards import Shard, list_shards
from ...datasets.spec import DatasetSpec
from ...errors import JoinError
from .lookup import RECENT, ScoreTable

READERS = 16


class ImageReader:
    """Reads the images of any scored examples, and nothing else of their shards: byte ranges of uncompressed tars, row groups
    of Parquet files, files of a folder.

    `shards` are the data set's, for who has listed them already.
    """

    def __init__(self, table: ScoreTable, dataset: DatasetSpec, shards: Sequence[Shard] | None = None) -> None:
        self._table, self._dataset = table, dataset
        self._shards = {shard.name: shard for shard in (list_shards(dataset) if shards is None else shards)}
        # Of the shards that a batch has examples of.
        self._places: Callable[[str], dict[str, Place]] = lru_cache(maxsize=RECENT)(self._read_places)

    def read(self, shards: Sequence[str], keys: Sequence[str]) -> list[bytes]:
        """The encoded images of B examples, in order. Files are read in threads.

        Raises JoinError for an example that was not scored, ShardError where a shard is not the one that was scored or is a
        compressed tar, TableError where the table does not say where images lie, StorageError where storage fails.
        """
        rows: dict[str, list[int]] = {}
        for i, shard in enumerate(shards):
            rows.setdefault(shard, []).append(i)
        found = [b""] * len(keys)
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(lambda shard: self._of_shard(shard, [keys[i] for i in rows[shard]]), rows)
            for shard, images in zip(rows, read, strict=True):
                for i, image in zip(rows[shard], images, strict=True):
                    found[i] = image
        return found

    def _of_shard(self, name: str, keys: Sequence[str]) -> list[bytes]:
        shard = self._shards.get(name)
        if shard is None:
            raise JoinError(f"shard '{name}': data set '{self._dataset.name}' has no such shard")
        places = self._places(name) if self._dataset.format != "folder" else dict.fromkeys(keys)
        for key in keys:
            if key not in places:
                raise JoinError(f"shard '{name}', key '{key}': expected a score, found none in {self._table.folder}")
        return read_images(self._dataset, shard, keys, [places[key] for key in keys])

    def _read_places(self, name: str) -> dict[str, Place]:
        return self._table.places(name, self._shards[name].size)
