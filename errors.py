"""Every error that a user can cause, in one tree. The command line prints its one line and exits with 1.

    CurateError
        SpecError         an entry of curate.toml, or an option
        ShardError        a whole shard is missing, cut or damaged
        ExampleError      one example is bad; becomes a row of the failures table
        StorageError      a file system or an object store did not do what it was asked
            ReadError     it cannot be read or listed
            WriteError    it cannot be written: full, not allowed, out of reach
        ModelError        a model
        TableError        a score table
            JoinError     a training example and its stored score
        RunError          a run folder
        BudgetError  FailuresError  BusyError  WorkerError  RankError  ActorError  FetchError  QueryError

Storage knows neither options nor commands, so its errors name none. A caller that knows another way out, such as another
--out, catches a WriteError and raises an error of its own that adds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from signal import Signals
from typing import Any

# Userinfo before a host; the same where a secret holds a slash, which a port number before a slash is not; a query.
_USERINFO = re.compile(r"((?:https?|ftp)://)[^\s/'\"]*@|([a-z][a-z0-9+.-]*://)[^\s/'\"]*:[^\s/'\"]*@", re.IGNORECASE)
_SLASHED = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/'\"@]*:(?!\d+(?:/|$))[^\s'\"@]*@", re.IGNORECASE)
_END = r"(?=[:;,.)]*(?:[\s'\"]|$))"
_QUERY = re.compile(
    rf"(https?://[^\s'\"?#]*)[?#][^\s'\"]*?{_END}|([a-z][a-z0-9+.-]*://[^\s'\"?#]*)[?#][^\s'\"]*=[^\s'\"]*?{_END}",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A URL, or a text with URLs in it, without user names, passwords, queries and fragments: they may hold secrets.

    A path without a protocol stays as it is.
    """
    if "://" not in text:
        return text
    for pattern in (_USERINFO, _SLASHED, _QUERY):
        text = pattern.sub(lambda found: found[1] or (found[2] if found.re.groups > 1 else ""), text)
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'label'?` for a word that is near a known one, else nothing."""
    near = get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown word: the nearest known one, or all of them where none is near."""
    names = sorted(known)
    return nearest(word, names).removeprefix("; ") or f"known are {', '.join(names)}"


def printable(text: str) -> str:
    """Text that can be stored and printed: bytes of a name that were not UTF-8 are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


class CurateError(Exception):
    """Base of all: the message says what was found, where, and what to do about it, in one printable line.

    Secrets in URLs are left out. `reported_by` is the rank that prints it, where that is another process of the run.
    """

    reported_by: int | None = None

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(without_secrets(" ".join(message.splitlines()))))


class CurateWarning(UserWarning):
    """Something that the user may not expect was found, and the work goes on. The command line prints its one line."""


class SpecError(CurateError):
    """A data set's or model's entry in curate.toml, or an option, cannot be used."""


class ShardError(CurateError):
    """A whole shard cannot be read: missing, cut, or with a key twice."""


class StorageError(CurateError):
    """A file system or an object store did not do what it was asked, or nothing opens this kind of URL."""


class ReadError(StorageError):
    """A file cannot be read, or a folder cannot be listed. Another attempt, later, may succeed."""


class WriteError(StorageError):
    """A file or folder cannot be written or removed: the disk is full, this user may not, or the store is out of reach."""


class ModelError(CurateError):
    """A model is unknown, has no weights where it needs them, or does not fit the task."""


class TableError(CurateError):
    """A score table is missing, incomplete, damaged, or was made for something else."""


class JoinError(TableError):
    """A training example and its stored score disagree, or the score is missing."""


class BudgetError(CurateError):
    """A budget cannot be read or is too small for a single step."""


class FailuresError(CurateError):
    """More examples failed than `--max-failures` allows."""


class RunError(CurateError):
    """A run folder is missing, taken, or was made with other settings."""


class DivergedError(RunError):
    """A loss or a score is NaN or infinite."""


class BusyError(CurateError):
    """Another job is writing the same folder."""


class WorkerError(CurateError):
    """A process that did part of a job died: killed, or out of memory."""


class RankError(CurateError):
    """Another process of a distributed run failed, or cannot be reached."""


class ActorError(CurateError):
    """Scoring actors are lost, or cannot be started or reached."""


class FetchError(CurateError):
    """A package with a known data set could not be fetched or is not the one expected."""


class QueryError(CurateError):
    """An SQL query is not a read, or DuckDB refuses it."""


class StoppedError(BaseException):
    """A signal asked the process to end: the machine is taken back, or the terminal is gone. No error, as Ctrl-C is none."""

    reported_by: int | None = None

    def __init__(self, signal: int, message: str = "") -> None:
        super().__init__(signal, message)
        self.signal, self.message = signal, message

    @property
    def exit_code(self) -> int:
        """As shells have it for a process that a signal ended."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"stopped by {Signals(self.signal).name}" + (f" {self.message}" if self.message else "")


class ExampleError(CurateError):
    """One example is bad. Never ends a job by itself: it becomes a row of the failures table.

    `stage` is where it failed (`read`, `decode`, `target`, `loss`), the message is the reason.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage
        self.reason = str(self)


def parts_of(state: Any, owner: str, *names: str) -> list[Any]:
    """What `load_state_dict` needs of a state. Raises RunError where it is the state of something else."""
    found = [*state] if isinstance(state, Mapping) else type(state).__name__
    if not isinstance(state, Mapping) or not {*names} <= {*state}:
        raise RunError(
            f"this is no state of {owner}: it has {found}, expected {', '.join(names)}; load what its state_dict gave"
        )
    return [state[name] for name in names]


def first_line(error: BaseException, most: int = 300) -> str:
    """An error's own words, in one line that can be read, of at most so many characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:most] if lines else type(error).__name__
