"""SIGTERM and SIGHUP: a scheduler takes the machine back, or the terminal is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Says when to end. Between `hold` and `release` a first signal only sets `asked`; a second one ends at once, in the
    middle of a step (`torn`)."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.torn = False
        self._held = False

    def __call__(self, number: int, frame: Any = None) -> None:
        """The handler."""
        if self._held and self.asked is None:
            self.asked = number
            return
        self.torn = self._held
        raise StoppedError(number)

    def hold(self) -> None:
        self._held = True

    @contextmanager
    def released(self) -> Iterator[None]:
        """Within, a signal ends the wait at once: there may be no end of a step."""
        self.release()
        try:
            yield
        finally:
            self.hold()

    def release(self, signal: int = 0) -> None:
        """Raises StoppedError where a signal came in the meantime, or where another process had this one."""
        self._held = False
        if signal or self.asked is not None:
            raise StoppedError(signal or self.asked or 0)


@contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within, the signals call `handler`. Nothing changes in another thread than the main one, and for what is ignored."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
