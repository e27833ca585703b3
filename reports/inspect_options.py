"""What the user chose for `curate inspect`. Nothing here imports DuckDB."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SpecError
from ..options import Bytes, Options, Share, check_least, check_local

MOST_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Options):
    """What is looked at, how much of it is read, and where the page is written."""

    dataset: str | None = None
    """Take images and class names from this data set. Default: the one that was scored or trained on, by its name."""
    out: str | None = None
    """Write index.html and the plots to this folder, in place of those that are there. Default: inspect/NAME, with the name of
    the run, or of the data set and the reference."""
    rows: int = 2_000_000
    """Read about this many rows. Of a larger table whole shards are drawn at random, of a longer run steps; the page says so."""
    images: int = 24
    """Show this many examples in each group of images."""
    image_bytes: Bytes = 1 << 30
    """Read shards of up to this size in all for images. Of a larger data set the images come from some shards."""
    similar: Share = 0.95
    """Count images as near duplicates from this cosine similarity of their embeddings on."""
    duplicate_rows: int = 100_000
    """Compare up to this many embeddings, each pair of them. Of more, whole shards are drawn at random."""

    def __post_init__(self) -> None:
        check_least(self, 1, "rows", "duplicate_rows")
        check_least(self, 0, "images")
        check_local(self, "out")
        if self.images > MOST_IMAGES:
            raise SpecError(f"--images is {self.images}, expected at most {MOST_IMAGES}: the page holds all of them")
        if not 0 < self.similar <= 1:
            raise SpecError(f"--similar is {self.similar:g}, expected above 0, at most 1")
