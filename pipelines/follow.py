"""`score-reference --follow`: scores shards as they land, in a job without an end.

The committed score files are its only memory: a follower that starts again misses no shard and repeats none. A shard is
passed on when two listings in a row show the same size and time. If its writer had only paused, reading it fails, because
readers require the mark at a shard's end. It is read again when it has changed.
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
# If storage cannot be listed for longer than this, the job ends. Unreadable shards are tried again at least this often.
OUTAGE_SECONDS, RETRY_SECONDS = 600.0, 3600.0


class LandingShards(beam.PTransform):
    """An unbounded source: the shards of a data set, the existing ones first, each once and when it is complete.

    `seconds` is the time between two listings. Shards whose scores are in `folder` are skipped.
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
    """Lists the files that exist. Files that are scored are skipped until they are written to again."""

    def __init__(self, dataset: DatasetSpec, folder: str, seconds: float) -> None:
        self._dataset, self._folder, self._seconds = dataset, folder, seconds

    def setup(self) -> None:
        self._looked = self._answered = float("-inf")
        self._scored: dict[str, str] = {}

    def process(self, tick: Any) -> Iterator[tuple[str, Looked]]:
        if time.monotonic() - self._looked < self._seconds / 2:  # ticks that accumulated during a slow listing
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
    """Passes a file on when two listings in a row show the same version, and each version once.

    A file that could not be read is passed on again later, after a wait that grows: its storage may have failed.
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
    """The shards of a file: a large Parquet file has several."""

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
    """Raises ShardError where a shard that was scored has another name now, with its folder in it."""
    short = path_of(shard.url).rsplit("/", 1)[-1]
    if shard.name != short and short in done:
        raise ShardError(
            f"{shard.url}: another folder has a file of this name too, so this is now shard '{shard.name}', and "
            f"'{short}' is scored already; give the files different names, or make each folder its own data set"
        )


def children_ignore_interrupts() -> AbstractContextManager[None]:
    """Ignores Ctrl-C while an engine starts: it would end the engine's processes too, which are needed to cancel a job."""
    return _handled(signal.SIGINT, signal.SIG_IGN)


def until_stopped(result: Any, report: Report) -> None:
    """Wait until the job fails, or is stopped by Ctrl-C or SIGTERM.

    Raises the job's error; WorkerError where the engine itself ended.
    """
    try:
        with _handled(signal.SIGTERM, signal.default_int_handler):
            while not PipelineState.is_terminal(result.state):
                time.sleep(0.5)
        result.wait_until_finish()
    except KeyboardInterrupt:
        report("stopping; a shard that is not finished is left to the next follower")
        with suppress(grpc.RpcError):
            result.cancel()
    except grpc.RpcError as e:
        why = e.details() if isinstance(e, grpc.Call) else e
        raise WorkerError(
            f"the engine no longer answers ({why}); the shards that were scored are kept, run again to resume"
        ) from None


@contextmanager
def _handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Sets a signal's handler inside the block. Only the main thread may set one; in other threads it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
