"""What the user chose for a scoring pass, checked before anything is opened. Nothing here imports Beam or torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import SpecError
from ..options import Options, Share, check_least
from ..scoring.settings import Coarse, Precision, check_precision

if TYPE_CHECKING:
    from ..datasets.spec import DatasetSpec
    from ..scoring.models import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(Options):
    """What to score and how. `runner_options` are Beam's own."""

    dataset: DatasetSpec
    """Score this data set: a name in curate.toml, or shards such as 'path/{000..099}.tar'."""
    reference: ModelSpec
    """Score with this model: a run's folder, a name in curate.toml, or a pretrained timm or open_clip name."""
    out: str = "scores"
    """Write the score table under this folder or URL."""
    score_size: int | None = None
    """Score images at this many pixels a side. Default: the model's own size."""
    score_patch_dropout: float = 0.0
    """Score a vision transformer without this share of its patches."""
    embeddings: bool = False
    """Store both embeddings of image-text pairs as well, in float16."""
    logits: bool = False
    """Store the logits of every class as well, in float16, for train --distill. For data sets with labels."""
    batch_size: int = 128
    """Score this many examples in one forward pass."""
    precision: Precision | None = None
    """Compute in this number format. Default: bf16 if the hardware gains by it, else fp32."""
    max_failures: Share = 0.01
    """Stop with an error when more than this share of the examples is bad."""
    follow: bool = False
    """Keep scoring shards as they land, until Ctrl-C."""
    every: float = 10.0
    """Look for new shards at intervals of this many seconds, with --follow."""
    runner_options: tuple[str, ...] = ()
    """Pass these options to Beam, spelled as Beam spells them."""

    def __post_init__(self) -> None:
        _ = self.coarse
        check_least(self, 1, "batch_size")
        check_precision(self.precision)
        if not 0 <= self.max_failures <= 1:
            raise SpecError(f"--max-failures is {self.max_failures:g}, expected 0 to 1")
        if self.logits and not self.dataset.target.has_classes:
            raise SpecError(
                f"--logits are a classifier's; data set '{self.dataset.name}' has captions: use --embeddings"
            )
        if self.embeddings and self.dataset.target.has_classes:
            raise SpecError(
                f"--embeddings are of image-text pairs; data set '{self.dataset.name}' has labels: use --logits, or leave it out"
            )
        if not self.every > 0:
            raise SpecError(f"--every is {self.every:g}, expected seconds above 0")
        if self.every != 10 and not self.follow:
            raise SpecError("--every is about new shards; give --follow too")
        if self.follow:
            from ..datasets.landed import check_lands

            check_lands(self.dataset)

    @property
    def coarse(self) -> Coarse:
        return Coarse(size=self.score_size, patch_dropout=self.score_patch_dropout)

    @property
    def model(self) -> ModelSpec:
        """The reference, at the resolution at which it scores."""
        return replace(self.reference, coarse=self.coarse.to_dict()) if self.coarse else self.reference
