"""Whether losses that were computed twice, on two machines perhaps, are those of the same model on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# What float32 sums in another order may change a loss by.
FP32_TOLERANCE = 1e-3
# Two machines' losses lie within so many of the greatest error that their format makes among some examples.
TIMES_ERROR = 5
# Where the middle half of losses spans three of those errors, two machines' orders correlate by 0.96. Fewer examples say little.
SPANNED_ERRORS, LEAST_CORRELATION, LEAST_EXAMPLES = 3, 0.9, 32


@dataclass(frozen=True)
class Agreement:
    """`tolerance` for a loss, times its size where that is above 1; `error` is the greatest that its format makes. By default
    those of float32."""

    tolerance: float = FP32_TOLERANCE
    error: float = FP32_TOLERANCE / TIMES_ERROR

    @classmethod
    def of(cls, loss_K: np.ndarray, exact_K: np.ndarray, most: float) -> Agreement:
        """For a format in which K examples have `loss_K` and in float32 `exact_K`; the tolerance is at `most` so large."""
        error_K = np.abs(loss_K - exact_K)
        relative = float((error_K / _sizes(exact_K)).max())
        return cls(min(most, max(FP32_TOLERANCE, TIMES_ERROR * relative)), float(error_K.max()))

    def first_apart(self, then_K: np.ndarray, now_K: np.ndarray) -> int | None:
        """The first example whose losses are not the same; None where all are."""
        apart = np.abs(now_K - then_K) > self.tolerance * _sizes(then_K)
        return int(apart.argmax()) if apart.any() else None

    def rank_correlation(self, then_K: np.ndarray, now_K: np.ndarray) -> float | None:
        """Spearman's, of which ties share a rank; None where rounding alone could change the order, or too few are known."""
        low, high = np.percentile(now_K, [25, 75])
        if len(now_K) < LEAST_EXAMPLES or high - low < SPANNED_ERRORS * self.error:
            return None
        then, now = _ranks(then_K), _ranks(now_K)
        return float(np.corrcoef(then, now)[0, 1]) if then.std() else 0.0


def _sizes(loss_K: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.maximum(1.0, np.abs(loss_K))
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    """Of each value its place among all, the mean place of those that are equal."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    found: np.ndarray = (ends - (count - 1) / 2)[place]
    return found
