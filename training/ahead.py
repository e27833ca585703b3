"""Shards read ahead: each lane's next window is read while this one is used, as far as the memory allows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from ..datasets.batches import daemon
from .loading import READERS, LoadedShard


class HostRoom:
    """Bytes of memory that shards and super-batches share: `held` of `most`."""

    def __init__(self, most: float) -> None:
        self.most, self.held = most, 0.0
        self._lock = threading.Lock()

    def take(self, size: float) -> bool:
        """Take so many bytes if there is room for them."""
        with self._lock:
            fits = self.held + size <= self.most
            self.held += size if fits else 0
            return fits

    def add(self, size: float) -> None:
        """Take bytes that cannot be waited for, or give bytes back: less than nothing."""
        with self._lock:
            self.held += size


class ReadAhead:
    """Loads shards in daemon threads: one that hangs keeps neither a stream from closing nor the process from ending."""

    def __init__(self, load: Callable[[int], LoadedShard], room: HostRoom) -> None:
        self.load, self.room = load, room
        self._waiting: queue.SimpleQueue[tuple[int, Future[LoadedShard]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def begin(self, index: int, size: float) -> Future[LoadedShard] | None:
        """Begin to load a shard of so many bytes; None where there is no room for it now."""
        if not self.room.take(size):
            return None
        if len(self._threads) < READERS:
            self._threads.append(daemon("read ahead", self._work))
        begun: Future[LoadedShard] = Future()
        self._waiting.put((index, begun))
        return begun

    def close(self) -> None:
        """Begin nothing more. A shard that is being read is read to its end, and forgotten."""
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        for _ in self._threads:
            self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            index, begun = item
            try:
                begun.set_result(self.load(index))
            except BaseException as e:
                begun.set_exception(e)
            del item, begun  # what was loaded is the lane's alone
