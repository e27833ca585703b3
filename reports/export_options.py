"""What the user chose for an export, checked before anything is opened. Nothing here imports DuckDB."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from ..errors import SpecError
from ..options import Options, Text, Values, check_choice, check_least
from ..scoring.policies import EASY_REFERENCE, HARD_LEARNER, LEARNABILITY, RHO, SMALL_LOSS
from ..units import parse_share

FORMATS = {
    "datacomp": "a sorted array of 128-bit uids (.npy), which DataComp's resharder reads",
    "keys": "a list of shards and keys, as text (.txt) or JSON lines (.jsonl)",
    "parquet": "one Parquet file with shard, key and the other columns (.parquet)",
    "webdataset": "a folder of tars, with every member as it is in the source",
    "huggingface": "a folder of Parquet files with images, for datasets.load_dataset",
    "rows": "a folder of Parquet files with the source's own rows, for data sets in Parquet",
}
BY_ENDING = {".npy": "datacomp", ".txt": "keys", ".jsonl": "keys", ".parquet": "parquet"}
IN_FOLDERS = ("webdataset", "huggingface", "rows")
UIDS = {
    "json": "the field uid of the example's .json member",
    "key": "the example's key",
    "metadata": "the column uid of img2dataset's Parquet files, next to the tars",
}
# The scores of policies in SQL. `loss` is the reference's, larger is more worth training on.
POLICY_SQL = {
    LEARNABILITY.name: "online_loss - loss",
    RHO.name: "online_loss - loss",
    HARD_LEARNER.name: "online_loss",
    SMALL_LOSS.name: "-online_loss",
    EASY_REFERENCE.name: "-loss",
}
HIGHEST, LOWEST = "highest", "lowest"
ORDER_OF = {**dict.fromkeys(POLICY_SQL, HIGHEST), "loss": LOWEST, "similarity": HIGHEST, "score": HIGHEST}


class Keep(NamedTuple):
    """How much to keep: a share of the rows, or a number of them. One of the two is None."""

    share: float | None
    rows: int | None

    def __str__(self) -> str:
        return f"{self.share * 100:g}%" if self.share is not None else str(self.rows)


def parse_keep(text: str, option: str) -> Keep:
    """`50%` and `0.5` are shares, `10000` is a number of rows. Raises SpecError."""
    if re.fullmatch(r"[0-9]+", text):
        return Keep(None, int(text))
    try:
        return Keep(parse_share(text, option), None)
    except SpecError:
        raise SpecError(f"{option} is '{text}', expected a share such as 50% or a number of examples") from None


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Which examples are exported, and how they are written."""

    dataset: str
    """Export examples of this data set: a name in curate.toml, or shards such as 'path/{000..099}.tar'."""
    format: Annotated[
        Literal["datacomp", "keys", "parquet", "webdataset", "huggingface", "rows"] | None, Values(FORMATS)
    ] = None
    """Write in this format. Default: from the target's ending."""
    sql: str | None = None
    """Export the rows of this SELECT, which needs the columns shard and key. It reads the views of curate sql, and metadata."""
    keep: Annotated[Keep, Text(parse_keep, str, "<share>")] | None = None
    """Keep this share of the score table, such as 50%, or this many examples. With --per: of each group."""
    by: str | None = None
    """Choose what to keep by this: a column, an SQL expression over columns, or a policy that scores examples one by one."""
    order: Literal["lowest", "highest"] | None = None
    """Keep the lowest or the highest values. Default: lowest for loss; highest for similarity, score and policies."""
    per: str | None = None
    """Keep the share of each group that has the same value of this column or SQL expression, such as label."""
    scores: str = "scores"
    """Read the score table in this folder or URL, or in a folder below it."""
    online: str | None = None
    """Read the column online_loss from this score table, which another model made of the same data set."""
    run: str | None = None
    """Read online_loss, score, drawn and selected from what this run recorded, a folder or a name: means and counts over its
    steps."""
    runs: str = "runs"
    """Read the runs under this folder: with --sql, and for a --run that is a name."""
    uid: Annotated[Literal["json", "key", "metadata"] | None, Values(UIDS)] = None
    """Take DataComp's uids from here. Default: the query's column uid if it has one, else json."""
    shard_size: int | None = None
    """Put whole shards together until a file has at least this many examples. Default: one file for each source shard."""

    def __post_init__(self) -> None:
        for name in ("format", "order", "uid"):
            check_choice(self, name)
        check_least(self, 1, "shard_size")
        if (self.sql is None) == (self.keep is None):
            raise SpecError("give either --sql or --keep, such as --keep 50% --by loss")
        chosen = {"by": self.by, "order": self.order, "per": self.per, "online": self.online, "run": self.run}
        if self.sql is not None:
            given = [f"--{name}" for name, value in chosen.items() if value is not None]
            if given:
                raise SpecError(f"{given[0]} belongs to --keep; say it in the query of --sql instead")
            return
        if self.by is None:
            raise SpecError("--keep needs --by, which says what to choose by; try --by loss")
        if self.online is not None and self.run is not None:
            raise SpecError("--online and --run both give online_loss; drop one")

    @property
    def highest(self) -> bool:
        """Whether the examples with the highest values are kept."""
        return (self.order or ORDER_OF.get(self.by or "")) == HIGHEST

    def check_order(self) -> None:
        """Raises SpecError where nothing says which values are kept. Call it once --by is known to name what is there: of a
        misspelt column no order helps."""
        if self.order is None and self.by not in ORDER_OF:
            raise SpecError(f"--by {self.by} needs --order lowest or --order highest, which says what to keep")

    def format_of(self, target: str) -> str:
        """The format to write `target` in. Raises SpecError where neither option nor ending says it, and for an option that
        this format does not heed."""
        format = self._format_of(target)
        if self.shard_size is not None and format not in IN_FOLDERS:
            raise SpecError(
                f"--shard-size is for {', '.join(IN_FOLDERS)}, and --format {format} writes one file; leave it out"
            )
        if self.uid in ("json", "key") and format != "datacomp":
            raise SpecError(f"--uid {self.uid} is for --format datacomp, and this is {format}; leave it out")
        return format

    def _format_of(self, target: str) -> str:
        ending = next((e for e in BY_ENDING if target.lower().endswith(e)), None)
        if self.format is None:
            if ending is None:
                known = ", ".join(BY_ENDING)
                raise SpecError(
                    f"{target}: its ending is none of {known}; give --format, such as --format {IN_FOLDERS[0]}"
                )
            return BY_ENDING[ending]
        wanted = [e for e, format in BY_ENDING.items() if format == self.format]
        if wanted and ending not in wanted:
            raise SpecError(f"{target}: --format {self.format} writes a file that ends in {' or '.join(wanted)}")
        if not wanted and ending is not None:
            raise SpecError(f"{target}: --format {self.format} writes a folder; give a name without {ending}")
        return self.format
