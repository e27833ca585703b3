"""Settings of scoring and selection that options, help texts and workers share. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..errors import SpecError
from ..options import flag

Precision = Literal["fp32", "bf16"]
Sampler = Literal["softmax", "topk", "reweight"]
# The sampler that draws nothing: all examples are trained on, and weigh by their scores.
REWEIGHT: Sampler = "reweight"
Reduction = Literal["mean", "none"]
ContrastiveLoss = Literal["sigmoid", "softmax"]
OnMissing = Literal["error", "score", "skip"]
Choice = Literal["global", "local"]
KeepBy = Literal["all", "class", "shard"]
# JEST's number of chunks (arXiv 2406.17711).
N_CHUNKS = 16


def check_precision(precision: str | None, option: str = "precision") -> None:
    """Raises SpecError for an unknown precision. None is allowed: the hardware decides."""
    if precision not in (None, *get_args(Precision)):
        raise SpecError(f"{flag(option)} is '{precision}', expected fp32 or bf16")


def check_keep(share: float, by: str) -> None:
    """Raises SpecError for a share of a data set that cannot be kept."""
    if not 0 < share <= 1:
        raise SpecError(f"--keep is {share:g}, expected a share above 0 and up to 1, such as 50%")
    if by not in get_args(KeepBy):
        raise SpecError(f"--keep-by is '{by}', expected {', '.join(get_args(KeepBy))}")


@dataclass(frozen=True, kw_only=True)
class Coarse:
    """The resolution of scoring: `size` pixels a side (None: the model's own), and `patch_dropout`, the share of a vision
    transformer's patches that is left out."""

    size: int | None = None
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise SpecError(f"--score-size is {self.size}, expected a number of pixels")
        if not 0 <= self.patch_dropout < 1:
            raise SpecError(f"--score-patch-dropout is {self.patch_dropout:g}, expected from 0 to below 1")

    def __bool__(self) -> bool:
        return self != Coarse()

    def __str__(self) -> str:
        parts = [f"{self.size} px"] if self.size else []
        parts += [f"{self.patch_dropout:.0%} of the patches dropped"] if self.patch_dropout else []
        return ", ".join(parts) or "the model's own resolution"

    def to_dict(self) -> dict[str, Any]:
        """Only the settings that differ from the model's own resolution; may be empty."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coarse:
        return cls(**values)


def sub_batch_size(super_batch_size: int, filter_ratio: float) -> int:
    """b of B at a filter ratio f, the share *dropped*: b = round(B (1 - f)). Raises ValueError if nothing is left."""
    if not 0 <= filter_ratio < 1:
        raise ValueError(f"filter ratio is {filter_ratio}, expected the share dropped, in [0, 1)")
    b = round(super_batch_size * (1 - filter_ratio))
    if b < 1:
        raise ValueError(f"filter ratio {filter_ratio} leaves nothing of a super-batch of {super_batch_size}")
    return b


def super_batch_size(batch_size: int, filter_ratio: float) -> int:
    """B for a sub-batch of b at filter ratio f: B = round(b / (1 - f))."""
    if not 0 <= filter_ratio < 1:
        raise ValueError(f"filter ratio is {filter_ratio}, expected the share dropped, in [0, 1)")
    return round(batch_size / (1 - filter_ratio))


def usual_reference_every(batch_size: int, super_batch_size: int) -> int:
    """How many super-batches are nearest to ten batches of the learner, the paper's for a reference that trains in the run;
    at least one."""
    return max(1, round(10 * batch_size / super_batch_size))
