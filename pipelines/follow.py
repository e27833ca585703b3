"""`score-reference --follow`: shards are scored as they land, by a job that has no end of its own.

The committed score files are all that it remembers: a follower that starts again misses none and repeats none. A shard
still being written is not taken before it looks the same at two looks in a row; one that only paused fails to be read,
since readers insist on the mark at a shard's end, and is read again when it has changed.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.coders import PickleCoder
from apache_beam.runners.runner import PipelineState
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.utils.timestamp import Timestamp

from ..datasets.landed import LandedFile, landed_files, shards_of_file
from ..datasets.shards import Shard, file_of, path_of
from ..datasets.spec import DatasetSpec
from ..errors import ShardError, StorageError, WorkerError
from ..scoring.tables.read import error_names, finished_shards
from ..scoring.tables.write import clear_error, note_error
from ..units import Report

# A file, when it was seen, and whether it could not be read before.
Looked = tuple[LandedFile, float, bool]
# A store that can't be listed for longer than this ends the job; what can't be read is tried again at least this often.
OUTAGE_SECONDS, RETRY_SECONDS = 600.0, 3600.0


class LandingShards(beam.PTransform):
    """An unbounded source: the shards of a data set, those that are there first, each once and when it is whole.

    `seconds` lie between two looks. Shards whose scores are in `folder` are passed over.
    """

    def __init__(self, dataset: DatasetSpec, folder: str, seconds: float) -> None:
        super().__init__()
        self._dataset, self._folder, self._seconds = dataset, folder, seconds

    def expand(self, begin: Any) -> Any:
        return (
            begin
            | "Ticks" >> PeriodicImpulse(start_timestamp=Timestamp.now(), fire_interval=self._seconds)
            | "Look" >> beam.ParDo(Look(self._dataset, self._folder, self._seconds))
            | "Settled" >> beam.ParDo(Settled(self._seconds))
            | "Open" >> beam.ParDo(Open(self._dataset, self._folder))
            | "Spread" >> beam.Reshuffle()
        )


class Look(beam.DoFn):
    """Lists what is there. Files that are scored are passed over, until they are written to again."""

    def __init__(self, dataset: DatasetSpec, folder: str, seconds: float) -> None:
        self._dataset, self._folder, self._seconds = dataset, folder, seconds

    def setup(self) -> None:
        self._looked = self._answered = float("-inf")
        self._scored: dict[str, str] = {}

    def process(self, tick: Any) -> Iterator[tuple[str, Looked]]:
        if time.monotonic() - self._looked < self._seconds / 2:  # ticks that piled up during a slow look
            return
        try:
            done, failed = finished_shards(self._folder), error_names(self._folder)
            files = landed_files(self._dataset)
        except StorageError:
            if time.monotonic() - self._answered > OUTAGE_SECONDS:
                raise
            return
        self._looked = self._answered = time.monotonic()
        now = time.time()
        done_files = {file_of(name) for name in done}
        failed_files = {file_of(name) for name in failed}
        for file in files:
            name = file.shard.name
            check_name(file.shard, done_files)
            if name not in done or self._scored.setdefault(name, file.version) != file.version:
                yield name, (file, now, name in failed_files)


class Settled(beam.DoFn):
    """Passes a file on that looks as it did a look before, and every version of it once.

    One that could not be read is passed on again after a while, longer each time: its storage may have failed.
    """

    SEEN = ReadModifyWriteStateSpec("seen", PickleCoder())

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def process(
        self,
        element: tuple[str, Looked],
        seen: Any = beam.DoFn.StateParam(SEEN),  # noqa: B008 - how Beam declares state
    ) -> Iterator[LandedFile]:
        file, now, failed = element[1]
        version, since, passes = seen.read() or ("", now, 0)
        if version != file.version or now < since:  # new, or the clock was set back
            seen.write((file.version, now, passes if version == file.version else 0))
            return
        wait = min(RETRY_SECONDS, self._seconds * 2 ** (passes + 2)) if passes else self._seconds / 2
        if now - since >= wait and (failed or not passes):
            seen.write((version, now, passes + 1))
            yield file


class Open(beam.DoFn):
    """The shards of a file: several of a big Parquet file."""

    def __init__(self, dataset: DatasetSpec, folder: str) -> None:
        self._dataset, self._folder = dataset, folder

    def process(self, file: LandedFile) -> Iterator[Shard]:
        try:
            shards = shards_of_file(self._dataset, file.shard)
        except (ShardError, StorageError) as e:
            note_error(self._folder, file.shard, str(e))
            return
        if len(shards) > 1:
            clear_error(self._folder, file.shard.name)
        yield from shards


def check_name(shard: Shard, done: set[str]) -> None:
    """Raises ShardError where a shard is called otherwise than when it was scored: its folder is in its name now."""
    short = path_of(shard.url).rsplit("/", 1)[-1]
    if shard.name != short and short in done:
        raise ShardError(
            f"{shard.url}: another folder has a file of this name too, so that this is now shard '{shard.name}', and "
            f"'{short}' is scored already; give files names of their own, or make each folder a data set"
        )


def children_ignore_interrupts() -> AbstractContextManager[None]:
    """For starting an engine: Ctrl-C reaches its processes too, and without them there is no cancelling the job."""
    return _handled(signal.SIGINT, signal.SIG_IGN)


def until_stopped(result: Any, report: Report) -> None:
    """Wait until somebody stops the job, by Ctrl-C or SIGTERM, or it fails.

    Raises what it failed with; WorkerError where the engine itself is gone.
    """
    try:
        with _handled(signal.SIGTERM, signal.default_int_handler):
            while not PipelineState.is_terminal(result.state):
                time.sleep(0.5)
        result.wait_until_finish()
    except KeyboardInterrupt:
        report("stopping; a shard under way is left to the next follower")
        with suppress(grpc.RpcError):
            result.cancel()
    except grpc.RpcError as e:
        why = e.details() if isinstance(e, grpc.Call) else e
        raise WorkerError(
            f"the engine does not answer any more ({why}); the shards that were scored stay, run again to go on"
        ) from None


@contextmanager
def _handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """A signal's handler for a while; in other threads than the main one, which may not set any, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
