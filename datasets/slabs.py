"""Memory that this process shares with processes which write into it, and which is used again when no array holds it."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Protocol

import numpy as np

# Free slabs of other sizes that are kept for later; memories that a process which writes keeps open.
MOST_FREE, MOST_OPEN = 4, 16
_NUMBERS = count()


class Pinning(Protocol):
    """Keeps memory in place, so that a GPU copies from it by itself."""

    def pin(self, address: int, size: int) -> bool:
        """Whether it is pinned from now on."""

    def unpin(self, address: int) -> None: ...

    def mark(self) -> Any:
        """Of what the GPU was asked for so far: its `query()` says whether all of it is done."""


class Memory(mmap.mmap):
    """Arrays whose base's base is one are rows of a slab."""


class Slab:
    """`size` bytes; `name` is how another process opens them."""

    def __init__(self, size: int, pinning: Pinning | None) -> None:
        self.size, self._pinning = size, pinning
        self._file, self._path = _open(size)
        self.name = (next(_NUMBERS), self._path or f"/proc/{os.getpid()}/fd/{self._file}", size)
        self.memory = Memory(self._file, size)
        self.address = _address(np.ndarray(size, np.uint8, self.memory))
        self._pinned = pinning is not None and pinning.pin(self.address, size)
        self.mark: Any = None

    @property
    def is_free(self) -> bool:
        """Whether a GPU has copied all that it was to copy out of it."""
        return self.mark is None or self.mark.query()

    def let_go(self) -> None:
        """No array holds it any more."""
        self.mark = self._pinning.mark() if self._pinned and self._pinning is not None else None

    def close(self) -> None:
        """Give the memory back, also where another process has it open."""
        if self._pinned and self._pinning is not None:
            self._pinning.unpin(self.address)
        os.ftruncate(self._file, 0)
        os.close(self._file)
        if self._path:
            os.unlink(self._path)


class Slabs:
    """Gives slabs as arrays."""

    def __init__(self, pinning: Pinning | None = None) -> None:
        self.pinning = pinning
        self._sizes: dict[int, int] = {}  # of all slabs, by where they begin
        self._free: list[Slab] = []
        self._returned: deque[Slab] = deque()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of all slabs that are in use or kept for later."""
        with self._lock:
            return sum(self._sizes.values())

    def has(self, address: int) -> bool:
        """Whether this address lies in one of them."""
        with self._lock:
            return any(start <= address < start + size for start, size in self._sizes.items())

    def take(self, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, str, int]]:
        """An array uint8 of this shape, whose values are any, and the name of its slab. The slab is used again once
        neither the array nor a view of it, nor a tensor made of one, is left."""
        size = int(np.prod(shape))
        with self._lock:
            while self._returned:
                self._free.append(self._returned.popleft())
            fitting = [s for s in self._free if size <= s.size <= 2 * size and s.is_free]
            if fitting:
                slab = min(fitting, key=lambda s: s.size)
                self._free.remove(slab)
            else:
                # What is a little too small will not be asked for again: the new one serves in its place.
                self._close([s for s in self._free if size <= 2 * s.size < 2 * size and s.is_free])
                slab = Slab(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE, self.pinning)
                self._sizes[slab.address] = slab.size
            self._close([s for s in self._free if s.is_free][: max(0, len(self._free) - MOST_FREE)])
        whole = np.ndarray(size, np.uint8, slab.memory)
        weakref.finalize(whole, _give_back, slab, self._returned).atexit = False
        return whole.reshape(shape), slab.name

    def _close(self, slabs: Sequence[Slab]) -> None:
        for slab in slabs:
            self._free.remove(slab)
            del self._sizes[slab.address]
            slab.close()


def _give_back(slab: Slab, returned: deque[Slab]) -> None:
    """Called in any thread, at any time: takes no lock."""
    slab.let_go()
    returned.append(slab)


def _open(size: int) -> tuple[int, str]:
    """A file of so many bytes and its path, if it has one. It has none where the system can do without: nothing is left
    then by a process that is killed, and a container's small /dev/shm is no limit."""
    file, path = -1, ""
    with suppress(AttributeError, OSError):  # another system, or one that forbids it
        file = os.memfd_create("curate images")
    if file < 0:
        file, path = tempfile.mkstemp(prefix="curate-images-")
    os.ftruncate(file, size)
    return file, path


_opened: dict[int, Memory] = {}


def opened(name: tuple[int, str, int]) -> Memory:
    """The memory of another process's slab."""
    number, path, size = name
    if number not in _opened:
        while len(_opened) >= MOST_OPEN:
            del _opened[min(_opened)]
        file = os.open(path, os.O_RDWR)
        try:
            _opened[number] = Memory(file, size)
        finally:
            os.close(file)
    return _opened[number]


def rows_together(rows: Sequence[np.ndarray], *, move: bool) -> np.ndarray | None:
    """These rows as one array without copying them, if they are, in their order, the rows of one slab; else None.

    With `move` rows that lie further back in the slab are moved forward, and rows from elsewhere put between them: what
    the slab held before is lost. None where that is not enough.
    """
    owners: dict[int, Any] = {id(row.base): row.base for row in rows}
    counts = Counter(id(row.base) for row in rows if isinstance(getattr(row.base, "base", None), Memory))
    whole = owners[counts.most_common(1)[0][0]] if counts else None
    if whole is None or whole.size != sum(row.size for row in rows):
        return None
    slab: np.ndarray = whole.reshape(len(rows), *rows[0].shape)
    start, step = _address(slab), rows[0].nbytes
    places = [(_address(row) - start) // step if row.base is whole else None for row in rows]
    wrong = [i for i, place in enumerate(places) if place != i]
    if (wrong and not move) or any(place is not None and place < i for i, place in enumerate(places)):
        return None
    for i in wrong:
        slab[i] = rows[i]
    return slab


def _address(array: np.ndarray) -> int:
    found: int = array.__array_interface__["data"][0]
    return found
