"""Figures over seeds: means, and differences between two arms paired by seed, with 90 % intervals. Pure functions."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from curate.reports.interval import t_95

# From so many seeds on a bootstrap over them says anything.
BOOTSTRAP_FROM = 3


def cell(shares: Sequence[float]) -> str:
    """The mean over seeds in per cent; from two seeds on with half of its 90 % interval, by Student's t."""
    if len(shares) < 2:
        return "".join(f"{100 * value:.1f}" for value in shares)
    return f"{100 * statistics.fmean(shares):.1f} ± {100 * half(shares):.1f} (n = {len(shares)})"


def difference(shares: Mapping[int, float], others: Mapping[int, float]) -> str:
    """What an arm has more than another with the same seed, in points: the mean over the seeds that both have, and its 90 %
    interval by a paired t-test / by a bootstrap over seeds. Empty where no seed is in both."""
    found = paired(shares, others)
    if len(found) < 2:
        return "".join(f"{value:+.1f}" for value in found)
    mean = statistics.fmean(found)
    intervals = [(mean - half(found), mean + half(found))]
    if len(found) >= BOOTSTRAP_FROM:
        intervals.append(bootstrap(found))
    return f"{mean:+.1f} ({' / '.join(f'{low:+.1f}..{high:+.1f}' for low, high in intervals)})"


def paired(shares: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """What an arm has more than another with the same seed, in points, for each seed that both have."""
    return [100 * (shares[seed] - others[seed]) for seed in sorted(shares.keys() & others.keys())]


def half(values: Sequence[float]) -> float:
    """Half of the 90 % interval of a mean, by Student's t."""
    return t_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 5 % and the 95 % quantile of the means of all n^n resamples, each equally likely: the percentile bootstrap without
    its randomness. For the few seeds of an experiment."""
    means = sorted(statistics.fmean(resample) for resample in itertools.product(values, repeat=len(values)))
    last = len(means) - 1
    return means[round(0.05 * last)], means[round(0.95 * last)]
