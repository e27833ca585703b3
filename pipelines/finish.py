"""The end of a scoring job: totals, costs, and the errors of a table that is not complete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..datasets.readers import Failure
from ..datasets.shards import Shard
from ..datasets.storage import exists, join_url
from ..errors import FailuresError, ShardError, TableError
from ..scoring.tables.counts import all_counts, scoring_flops
from ..scoring.tables.read import ShardCounts, first_failure, noted_errors, shard_counts
from ..scoring.tables.schema import ENDING
from ..scoring.tables.write import clear_error, write_manifest


def finish(
    folder: str, manifest: dict[str, Any], shards: Sequence[Shard], max_failures: float, *, stopped: bool = False
) -> dict[str, int]:
    """Write the manifest with its totals, and return them: `shards`, `examples`, `failures` and `waiting`.

    Raises ShardError for shards that could not be read, TableError for shards that are missing although nothing failed
    (in a job that was `stopped` they are `waiting`), FailuresError for more failures than allowed. Committed files stay.
    """
    names = [shard.name for shard in shards]
    done = all_counts(folder, keep=True)
    done |= _unlisted(folder, [name for name in names if name not in done])
    noted = noted_errors(folder)
    bad = {name: noted[name] for name in names if name in noted and name not in done}
    missing = [name for name in names if name not in done and name not in bad]
    for name in noted.keys() & done.keys():  # an earlier attempt could not read them, a later one could
        clear_error(folder, name)
    counts = list(done.values())
    examples, failures = sum(c.examples for c in counts), sum(c.failures for c in counts)
    totals = {"shards": len(done), "examples": examples, "failures": failures}
    manifest["counts"] = totals
    manifest["flops"]["reference_score"] = scoring_flops(manifest, counts)
    write_manifest(folder, manifest)
    if bad:
        first = next(iter(sorted(bad)))
        more = f" (and {len(bad) - 1} more, in {folder}/_errors)" if len(bad) > 1 else ""
        raise ShardError(f"{bad[first]}{more}; the other {len(done):,} shards are scored, run again to resume")
    if missing and not stopped:
        raise TableError(
            f"{folder}: {len(missing):,} of {len(names):,} shards are missing, such as '{missing[0]}', although every "
            "worker succeeded; workers must write to this same folder: give an --out that all machines share, such as a "
            "URL, and run again to resume"
        )
    if failures > max_failures * max(1, examples + failures):
        worst = max(done, key=lambda name: done[name].failures)
        example = first_failure(folder, worst)
        raise FailuresError(too_many_message(failures, examples + failures, max_failures, folder, example))
    return {**totals, "waiting": len(missing)}


def check_size(folder: str, shard: Shard, scored: int) -> None:
    """Raises TableError where a shard's size is not the one that it was scored at."""
    if shard.size != scored:
        raise TableError(
            f"{folder}: shard '{shard.name}' was scored at size {scored} and is now {shard.size}; "
            f"delete {shard.name}{ENDING} there to score it again"
        )


def _unlisted(folder: str, names: Sequence[str]) -> dict[str, ShardCounts]:
    """Those of these shards that exist after all: a store may list a new file late."""
    with ThreadPoolExecutor(16) as pool:
        there = pool.map(lambda name: exists(join_url(folder, name + ENDING)), names)
        return {name: shard_counts(folder, name) for name, found in zip(names, there, strict=True) if found}


def too_many_message(failures: int, read: int, allowed: float, folder: str, first: Failure | None) -> str:
    """The error message when more examples failed than a job allows. `first` is one of them."""
    hint = f"; one of them: shard {first.shard}, key '{first.key}': {first.reason}" if first else ""
    return (
        f"{failures:,} of {read:,} examples failed ({failures / read:.1%}, allowed {allowed:.1%}); "
        f"the reasons are in {os.path.join(folder, '_failures')}; correct the data or raise --max-failures{hint}"
    )
