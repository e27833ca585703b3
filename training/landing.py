"""`train --follow`: shards that land while a run trains, and the record of which epoch each entered.

`shards.json` in the run's folder has the decisions. It is all that the order of examples needs beside the options, so a
resumed run and a replay read what the run read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..datasets.batches import map_in_threads
from ..datasets.landed import LandedFile, check_lands, landed_files, landed_shards, shards_of_file
from ..datasets.readers import Example, read_shard
from ..datasets.shards import Shard, file_of, path_of
from ..datasets.spec import DatasetSpec
from ..datasets.writing import write_whole
from ..errors import CurateError, RunError, ShardError, SpecError, StorageError
from ..scoring.tables.counts import all_counts
from ..scoring.tables.lookup import ScoreTable
from ..scoring.tables.read import shard_counts
from ..units import Report
from .epochs import Arrival, Arrivals, GrowingEpochs
from .loading import READERS
from .records import read_document

FILE = "shards.json"


def refuse_follow(dataset: DatasetSpec, ranks: int) -> None:
    """Raises SpecError where a run cannot follow this data set."""
    check_lands(dataset)
    if ranks > 1:
        raise SpecError("--follow is for one process; start the run without torchrun or srun, or leave it out")


class Landing:
    """Looks for shards that are complete: those whose scores are in `table` or, without one, whose files are as they were at
    the look before and can be read."""

    def __init__(self, dataset: DatasetSpec, table: ScoreTable | None, report: Report) -> None:
        self.dataset, self.table, self._report = dataset, table, report
        self._versions: dict[str, str] = {}
        self._unreadable: dict[str, str] = {}  # the version of each file that could not be read
        self._told: set[str] = set()

    def first(self, shards: Sequence[Shard]) -> list[tuple[Shard, int | None]]:
        """Those of the `shards` that a run begins with. Raises ShardError where there are none."""
        self._versions = {file.shard.name: file.version for file in landed_files(self.dataset)}
        found = [(shard, shard.rows) for shard in shards]
        if self.table is not None:
            counts = all_counts(self.table.folder)
            waiting = {s.name for s in shards if s.name not in counts or counts[s.name].shard_size != s.size}
            files = {file_of(name) for name in waiting}  # a file enters as a whole
            whole = [shard for shard in shards if file_of(shard.name) not in files]
            found = [(s, counts[s.name].examples + counts[s.name].failures) for s in whole]
        if not found:
            what = "of its shards is scored" if shards else "of its shards exists"
            raise ShardError(f"data set '{self.dataset.name}': none {what} yet; --follow begins with at least one")
        return found

    def look(self, known: set[str]) -> list[tuple[Shard, int | None]]:
        """The shards that are complete and not among the `known`, with their rows where these are known. A store that does
        not answer, and a shard that cannot be used, are reported, and looked at again the next time.

        Raises ShardError where a shard that is known has another name now.
        """
        try:
            files = landed_files(self.dataset)
        except StorageError as e:
            self._report(f"shards that landed cannot be listed, the next epoch has none of them: {e}")
            return []
        known_files = {file_of(name) for name in known}
        new = [file for file in files if file.shard.name not in known_files]
        for file in new:
            short = path_of(file.shard.url).rsplit("/", 1)[-1]
            if short in known_files:
                raise ShardError(
                    f"{file.shard.url}: another folder has a file of this name too, so '{short}' is now another shard; give "
                    "the files different names, or make each folder its own data set"
                )
        if self.table is not None:
            return self._scored([file.shard for file in new])
        settled = [file for file in new if self._versions.get(file.shard.name) == file.version]
        self._versions = {file.shard.name: file.version for file in files}
        waiting = [file for file in settled if self._unreadable.get(file.shard.name) != file.version]
        return [(s, s.rows) for shards in map_in_threads(self._readable, waiting, READERS) for s in shards]

    def _readable(self, file: LandedFile) -> list[Shard]:
        """The shards of a file, each read once as a whole: a shard that enters an epoch can never leave it."""
        try:
            shards = shards_of_file(self.dataset, file.shard)
            for shard in shards:
                examples = [isinstance(one, Example) for one in read_shard(self.dataset, shard)]
                if not any(examples):
                    raise ShardError(f"{shard.url}: none of its {len(examples):,} examples can be used")
            return shards
        except StorageError as e:
            self._tell(file.shard.name, str(e))
        except ShardError as e:
            self._unreadable[file.shard.name] = file.version
            self._tell(file.shard.name, str(e))
        return []

    def _scored(self, files: Sequence[Shard]) -> list[tuple[Shard, int | None]]:
        """Those of the files' shards whose scores are there and can be used."""
        assert self.table is not None
        scored = self.table.shard_names()
        scored_files = {file_of(name) for name in scored}
        found: list[tuple[Shard, int | None]] = []
        for file in files:
            if file.name not in scored_files:
                continue
            try:
                shards = shards_of_file(self.dataset, file)
                if not all(shard.name in scored for shard in shards):
                    continue  # a file enters as a whole
                for shard in shards:
                    counts = shard_counts(self.table.folder, shard.name)
                    if counts.shard_size != shard.size:
                        raise ShardError(f"{shard.url}: was scored at size {counts.shard_size} and is now {shard.size}")
                    self.table.take_in(shard.name)
                    found.append((shard, counts.examples + counts.failures))
            except CurateError as e:
                found = [(shard, rows) for shard, rows in found if file_of(shard.name) != file.name]
                self._tell(file.name, str(e))
        return found

    def _tell(self, shard: str, why: str) -> None:
        if f"{shard} {why}" not in self._told:
            self._told.add(f"{shard} {why}")
            self._report(f"shard '{shard}' landed and cannot be used: {why}")


def read_arrivals(run: Path) -> list[Arrivals]:
    """What a run wrote down. Raises RunError where it is missing or damaged."""
    if not (run / FILE).exists():
        raise RunError(
            f"{run / FILE}: is missing, and says which shards each epoch has; restore it, or begin anew: --name"
        )
    content = read_document(run / FILE)
    try:
        return [Arrivals.from_dict(one) for one in content["epochs"]]
    except (KeyError, TypeError) as e:
        raise RunError(f"{run / FILE}: is damaged ({e!r}); restore it, or begin anew: --name") from None


def write_arrivals(run: Path, epochs: Sequence[Arrivals]) -> None:
    content = {"epochs": [one.to_dict() for one in epochs]}
    write_whole(run / FILE, (json.dumps(content, indent=1) + "\n").encode())


def growing_epochs(
    run: Path,
    dataset: DatasetSpec,
    table: ScoreTable | None,
    report: Report,
    *,
    began: bool,
    recorded: Path | None = None,
) -> GrowingEpochs:
    """The epochs of a run: those that it has written down if it `began`, and more as shards land. A replay of the run whose
    folder is `recorded` has its epochs, and no more.

    Raises ShardError where nothing is there to begin with, RunError where a shard of an epoch is there no more.
    """
    landing, landed = Landing(dataset, table, report), landed_shards(dataset)
    if recorded is not None:
        decided = read_arrivals(recorded)
    elif began:
        decided = read_arrivals(run)
    else:
        first = landing.first(landed)
        decided = [Arrivals(0, [Arrival(shard.name, shard.size, rows) for shard, rows in first])]
    there = {shard.name: shard for shard in landed}

    def found(one: Arrival) -> Shard:
        shard = there.get(one.name)
        if shard is None or shard.size != one.size:
            what = "is there no more" if shard is None else f"had size {one.size} and has {shard.size} now"
            raise RunError(f"{run}: shard '{one.name}' {what}, and the run's epochs have it; restore it")
        if table is not None and not table.holds(one.name):
            raise RunError(f"{run}: {table.folder} has no scores of shard '{one.name}' any more; restore them")
        return shard

    def note(arrivals: Arrivals) -> None:
        write_arrivals(run, [*epochs.arrivals, arrivals])
        if arrivals.new:
            total = len(epochs.shards) + len(arrivals.new)
            report(f"epoch {arrivals.epoch + 1:,} has {total:,} shards, {len(arrivals.new):,} of them new")

    look = None if recorded is not None else landing.look
    epochs = GrowingEpochs(decided, found, look=look, note=note)
    if not began:
        write_arrivals(run, decided)
    return epochs
