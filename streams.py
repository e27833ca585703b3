"""Standard streams as a command finds them: closed, a pipe that nobody reads, without UTF-8. None of that is a traceback."""

from __future__ import annotations

import codecs
import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any

ASCII = {"…": "...", "≤": "<=", "≈": "~", "\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x", "\N{EN DASH}": "-"}
NAMES = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def settle() -> None:
    """Make the streams usable: open those that are closed to nothing, and spell out what an encoding lacks.

    A file that is opened later must not get the number of a closed stream, since libraries print to that number.
    """
    codecs.register_error("curate", _spell_out)
    for number, (name, mode) in enumerate(NAMES):
        stream: Any = getattr(sys, name)
        if stream is None:
            _occupy(number)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open as long as the process
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="curate")
    if os.environ.get("COLUMNS", "") == "0":  # a terminal whose size nobody knows
        del os.environ["COLUMNS"]


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != number:
            os.dup2(nothing, number)
            os.close(nothing)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """An error handler for encoding: signs that we print have an ASCII form, anything else is \\xNN or \\uNNNN."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    spelled = "".join(ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return spelled, error.end


def nobody_reads(stream: IO[str]) -> bool:
    """Whether a stream is a pipe or a socket whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def file_of(stream: IO[str]) -> tuple[int, int] | None:
    """Which file a stream writes to; None where it is none."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def flush_or_drop() -> None:
    """Write what is held, or drop it where that fails, so that Python does not complain about it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError, ValueError):
                os.dup2(nothing, stream.fileno())
            os.close(nothing)


def end_within(seconds: float, code: int) -> None:
    """End this process by then, even where a thread still waits for a storage that does not answer."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, daemon=True, name="end").start()
