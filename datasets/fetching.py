"""A store's file that is read from its beginning to its end: its next parts are fetched while one is used.

fsspec's own files fetch a block when it is asked for, so that a stream waits for each one's first byte, and nothing is
fetched while a block is parsed and decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

# Bytes of a part, and how many are fetched beside the one in use. What they hold comes on top of a run's host_bytes.
PART, AHEAD = 4 << 20, 3

Fetch = Callable[[int, int], bytes]
"""The bytes from one offset up to another."""


class FetchedAhead:
    """A readable, seekable file of `size` bytes. One reader may use it at a time.

    The first part is fetched alone, since many readers only look at the beginning of a file. A part that could not be
    fetched raises what `fetch` raised, and is fetched anew when it is read again.
    """

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch, self._size = fetch, size
        self._at = 0
        self._parts: dict[int, Future[bytes]] = {}
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """Less than `size` bytes at the end of the file alone."""
        end = self._size if size < 0 else min(self._size, self._at + size)
        found = []
        while self._at < end:
            number, offset = divmod(self._at, PART)
            part = self._part(number)[offset : offset + end - self._at]
            found.append(part)
            self._at += len(part)
        return found[0] if len(found) == 1 else b"".join(found)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing more is fetched. A fetch that is under way ends by itself."""
        self.closed = True
        self._parts = {}

    def _part(self, number: int) -> bytes:
        last = min(number + min(number, AHEAD), (self._size - 1) // PART)
        self._parts = parts = {n: self._parts.get(n) or self._begin(n) for n in range(number, last + 1)}
        try:
            return parts[number].result()
        except BaseException:
            del parts[number]
            raise

    def _begin(self, number: int) -> Future[bytes]:
        begun: Future[bytes] = Future()
        first, end = number * PART, min(self._size, (number + 1) * PART)

        def fetch() -> None:
            try:
                found = bytes(self._fetch(first, end))
                if len(found) != end - first:
                    raise OSError(f"got {len(found):,} of {end - first:,} bytes")
                begun.set_result(found)
            except BaseException as e:
                begun.set_exception(e)

        # A daemon: a fetch that hangs does not keep the process from ending.
        threading.Thread(target=fetch, daemon=True, name="fetch").start()
        return begun
