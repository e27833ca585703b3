"""Rows of any shards, read one by one: from memory where the data set fits, else by their places in the files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..datasets.batches import map_in_threads
from ..datasets.ranges import read_images
from ..datasets.readers import Example
from ..errors import RunError
from .loading import READERS, Row, ShardLoader, UnreadableError


class PlaceReader:
    """Reads chosen rows of the shards of a loader. The rest of a shard is read only where the whole data set stays in memory
    anyway."""

    def __init__(self, loader: ShardLoader) -> None:
        self.loader = loader
        self._rows: dict[int, dict[int, Row]] = {}

    def read(
        self, shards: Sequence[int], rows: Sequence[int], items: Sequence[Any], losses: Sequence[float]
    ) -> list[Row]:
        """The rows with these numbers within their shards, in this order. `items` have the key, target and place of each,
        `losses` are the reference's. Raises ShardError and StorageError where a shard changed or cannot be read."""
        numbers: dict[int, list[int]] = {}
        for i, shard in enumerate(shards):
            numbers.setdefault(shard, []).append(i)
        found: dict[int, Row] = {}

        def of_shard(shard: int) -> list[tuple[int, Row]]:
            mine = numbers[shard]
            if self.loader.keeps_all:
                known = self._known(shard)
                return [(i, known[rows[i]]) for i in mine]
            its = self.loader.shards[shard]
            keys, places = [items[i].key for i in mine], [items[i].place for i in mine]
            images = read_images(self.loader.dataset, its, keys, places)
            return [
                (i, Row(Example(its.name, rows[i], items[i].key, image, items[i].target, 0), losses[i], None, -1))
                for i, image in zip(mine, images, strict=True)
            ]

        for part in map_in_threads(of_shard, list(numbers), READERS):
            found.update(part)
        return [found[i] for i in range(len(shards))]

    def named(self, shards: Sequence[str], keys: Sequence[str]) -> list[Row]:
        """The rows of these names, in this order. Raises RunError where one is gone, ShardError where a shard cannot be read."""
        numbers = {shard.name: i for i, shard in enumerate(self.loader.shards)}
        by_key: dict[str, dict[str, Row]] = {}
        for name in dict.fromkeys(shards):
            if name in numbers:
                by_key[name] = {row.example.key: row for row in self._known(numbers[name]).values()}
        for name, key in zip(shards, keys, strict=True):
            if key not in by_key.get(name, {}):
                raise RunError(f"shard '{name}', key '{key}': was trained on and is gone; restore the data set")
        return [by_key[name][key] for name, key in zip(shards, keys, strict=True)]

    def _known(self, shard: int) -> dict[int, Row]:
        if shard in self._rows:
            return self._rows[shard]
        try:
            found = {row.example.row: row for row in self.loader.load(shard).rows}
        except UnreadableError as e:
            raise e.error from e
        if self.loader.keeps_all:
            self._rows[shard] = found
        return found
