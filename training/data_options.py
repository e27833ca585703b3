"""Options of what a run reads."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SpecError
from ..options import Bytes, Concern, Share, check_least
from ..units import parse_share


def parse_mixture(text: str) -> tuple[str, float]:
    """(data set, share) of DATASET:SHARE. Raises SpecError."""
    name, _, share = text.rpartition(":")
    if not name:
        raise SpecError(f"--mix is '{text}', expected DATASET:SHARE, such as curated:25%")
    found = parse_share(share, "--mix")
    if not 0 < found <= 1:
        raise SpecError(f"--mix is '{text}', expected a share above 0 and up to 100 %")
    return name, found


@dataclass(frozen=True, kw_only=True)
class DataOptions(Concern):
    """How the data set is read."""

    max_failures: Share = 0.01
    """Stop with an error when more than this share of the examples is bad. This is judged from 1,000 examples on, or at the end
    of the first epoch if there are fewer. It holds for the test split too."""
    max_bad_shards: int | None = None
    """Skip up to this many shards that cannot be read. Default: 1 % of the shards, so none of fewer than 100."""
    lanes: int | None = None
    """Draw every super-batch from this many lanes, each of which reads its own shards. Default: 32, or one for each shard if
    there are fewer."""
    follow: bool = False
    """Train also on shards that land during the run, from the next epoch on. Where the policy reads a score table, a shard
    enters once it is scored: `score-reference --follow` scores shards as they land."""
    host_bytes: Bytes = 1 << 30
    """Hold up to this much of shards and super-batches in memory, to draw examples in random order and to read ahead."""
    cache_bytes: Bytes = 2 << 30
    """Keep up to this much of decoded images in memory, so that a small data set is decoded once."""
    decode_processes: int | None = None
    """Decode images in this many processes beside the one that trains, of 0.3 GB each; 0 decodes in threads. Default: a
    process for each further core where there are more than 4 and images have 96 pixels a side or more; else threads."""
    mix: str | None = None
    """Draw a share of every super-batch from another data set, such as curated:25%, each in its own epochs. A policy chooses
    among both."""
    mix_last: Share = 1.0
    """Mix only in this last share of the steps, such as 10%."""
    mix_scores: str | None = None
    """Read the reference's losses of the data set that is mixed in from this score table."""

    @property
    def mixture(self) -> tuple[str, float] | None:
        """The data set that is mixed in, and its share."""
        return None if self.mix is None else parse_mixture(self.mix)

    def __post_init__(self) -> None:
        _ = self.mixture
        if not 0 < self.mix_last <= 1:
            raise SpecError(f"--mix-last is {self.mix_last:g}, expected above 0 and up to 1, such as 10%")
        if self.mix is None and (self.mix_scores is not None or self.mix_last != 1):
            raise SpecError("--mix-last and --mix-scores are about a mixture; give --mix DATASET:SHARE too")
        if not 0 <= self.max_failures <= 1:
            raise SpecError(f"--max-failures is {self.max_failures:g}, expected 0 to 1")
        check_least(self, 1, "lanes", "host_bytes")
        check_least(self, 0, "cache_bytes", "max_bad_shards", "decode_processes")
