"""`curate export`: a chosen part of a data set, in a format that other tools read.

    TARGET               the export
    TARGET.export.json   what it is: how many of how many, by which table and SQL; `finished` is false until it is whole

The rows are chosen once and kept next to the target until the export is finished, so that a resumed export has the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..datasets.shards import Shard, list_shards
from ..datasets.spec import Config, DatasetSpec, find_dataset
from ..datasets.storage import exists, join_url, list_names, read_bytes
from ..datasets.writing import remove, write_whole
from ..errors import QueryError, SpecError
from ..units import Report
from .export_folders import Writer, plan_files, write_folder
from .export_lists import write_keys, write_rows, write_uids
from .export_options import ExportOptions
from .export_parquet import write_huggingface, write_source_rows
from .export_picks import Picks
from .export_select import Selected, select_rows
from .export_tars import write_tar
from .output import write
from .reading import query

ABOUT = ".export.json"
# The formats of one file for each source shard: how it is written, and its name.
FOLDER_WRITERS: dict[str, tuple[Writer, str]] = {
    "webdataset": (write_tar, "{name}.tar"),
    "huggingface": (write_huggingface, "train-{i:05d}-of-{n:05d}.parquet"),
    "rows": (write_source_rows, "{name}.parquet"),
}


@dataclass(frozen=True)
class Exported:
    """A finished export: the examples kept, of how many (None: unknown), how many of these have no value to choose by, and
    the path of the JSON that says so."""

    rows: int
    of: int | None
    without_value: int
    about: str

    def line(self) -> str:
        of = f" of {self.of:,} scored" if self.of is not None else ""
        without = f" ({self.without_value:,} have no value to choose by)" if self.without_value else ""
        return f"{self.rows:,}{of} examples{without} exported; {self.about} says how they were chosen"


def export(target: str, options: ExportOptions, config: Config, report: Report) -> Exported:
    """Choose examples and write them to `target`, a path or URL. An interrupted export of the same is resumed.

    Raises SpecError where the target exists and is no unfinished export of the same, QueryError where no example is
    chosen or a chosen one is not in the data, and what choosing and reading raise.
    """
    target = target.rstrip("/")
    format = options.format_of(target)
    spec = find_dataset(options.dataset, config)
    if format == "rows" and spec.format != "parquet":
        raise SpecError(f"--format {format} copies rows of Parquet files; data set '{spec.name}' is {spec.format}")
    selected = select_rows(options, spec, config)
    asked = _asked(options, format, spec, selected)
    about = target + ABOUT
    folder, _, name = target.rpartition("/")
    picks = Picks(join_url(folder, f".{name}.picks.parquet") if folder else f".{name}.picks.parquet")
    resumed = _check_target(target, about, asked, _is_there(target, format))
    if not resumed:
        _write_about(about, {**asked, "finished": False})
    if not (resumed and exists(picks.url)):
        write(query(selected.connection, selected.sql), "parquet", picks.url)
    try:
        facts = _write(target, format, options, spec, picks, report)
    except (QueryError, SpecError):
        if not _is_there(target, format):  # the same command would fail again: leave nothing to resume
            remove(picks.url)
            remove(about)
        raise
    facts = {"rows": picks.rows, "of": selected.of, "without_value": selected.without_value, **facts}
    _write_about(about, {**asked, **facts, "finished": True})
    remove(picks.url)
    return Exported(picks.rows, selected.of, selected.without_value, about)


def _write(
    target: str, format: str, options: ExportOptions, spec: DatasetSpec, picks: Picks, report: Report
) -> dict[str, Any]:
    """Write the target, and return what its JSON says of it."""
    if not picks.rows:
        raise QueryError("no example is chosen; look at the rows with curate sql")
    shards: dict[str, Shard] = {shard.name: shard for shard in list_shards(spec)}
    unknown = next((shard for shard in picks.counts if shard not in shards), None)
    if unknown is not None:
        if options.sql is None:
            raise QueryError(
                f"data set '{spec.name}' has no shard '{unknown}', which was scored; restore it, or choose with --sql, which "
                f"can leave it out: WHERE shard <> '{unknown}'"
            )
        raise QueryError(
            f"data set '{spec.name}' has no shard '{unknown}'; add WHERE dataset = '{spec.name}' to the query, or give "
            "the data set that the rows are of"
        )
    if format in FOLDER_WRITERS:
        writer, pattern = FOLDER_WRITERS[format]
        files = plan_files(picks.counts, options.shard_size, lambda i, n, name: pattern.format(i=i, n=n, name=name))
        write_folder(target, files, picks, spec, shards, writer, report)
        return {"files": len(files)}
    if target.lower().endswith(".npy"):
        return {"uids": write_uids(target, picks, shards, options.uid)}
    {"keys": write_keys, "parquet": write_rows}[format](target, picks)
    return {}


def _asked(options: ExportOptions, format: str, spec: DatasetSpec, selected: Selected) -> dict[str, Any]:
    """What an export is of. An interrupted one is resumed where this is the same."""
    given = {name: value for name, value in options.to_dict().items() if value is not None}
    given["keep"] = str(options.keep) if options.keep is not None else None
    return {
        "format": format,
        "dataset": spec.name,
        "dataset_fingerprint": spec.fingerprint,
        "train": list(spec.train),
        "tables": selected.tables,
        "sql": selected.sql,
        "options": {name: value for name, value in given.items() if value is not None},
    }


def _is_there(target: str, format: str) -> bool:
    return bool(list_names(target)) if format in FOLDER_WRITERS else exists(target)


def _check_target(target: str, about: str, asked: dict[str, Any], there: bool) -> bool:
    """Whether to resume. Raises SpecError where something else is there."""
    try:
        found = json.loads(read_bytes(about))
    except (FileNotFoundError, ValueError):
        found = None
    if found is None:
        if there:
            raise SpecError(f"{target}: exists and was not written by curate export; remove it, or give another target")
        return False
    if found.get("finished"):
        raise SpecError(
            f"{target}: is a finished export of {found.get('rows'):,} examples; remove it and {about}, or give another target"
        )
    other = [name for name, value in asked.items() if found.get(name) != value]
    if other:
        raise SpecError(
            f"{target}: is an unfinished export with another {', '.join(other)}; remove it and {about}, or give another "
            "target"
        )
    return True


def _write_about(about: str, content: dict[str, Any]) -> None:
    text = json.dumps({"code_version": __version__, **content}, indent=2, ensure_ascii=False)
    write_whole(about, text.encode(errors="backslashreplace"))  # of a path that is not UTF-8, as JSON has it
