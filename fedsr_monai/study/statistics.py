"""Paired comparisons of arms: seeds are the units, cases are nested in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 5000


@dataclass(frozen=True)
class Contrast:
    """The difference of two arms.

    Attributes:
        mean: mean difference, over seeds and cases.
        low, high: 95 % interval of the hierarchical bootstrap.
        p: two-sided, paired t-test of the seeds' mean differences; nan with fewer than two seeds.
        seeds, cases: how many of each.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    cases: int


def contrast(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Contrast:
    """Compare two arms that were measured with the same seeds on the same cases.

    Args:
        first, second: a measure, [seeds, cases].
        seed: seed of the bootstrap.

    Raises:
        ValueError: the shapes differ, or a value is not finite.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"contrast() 'first' has shape {first.shape}, 'second' {second.shape}; expected [seeds, cases]"
        )
    difference = np.asarray(first, float) - np.asarray(second, float)
    if not np.isfinite(difference).all():
        raise ValueError("contrast() got a value that is not finite; a failed case counts with Dice 0, not with NaN")
    low, high = hierarchical_interval(difference, seed)
    return Contrast(float(difference.mean()), low, high, paired_p(difference), *difference.shape)


def paired_p(difference: np.ndarray) -> float:
    """Return the p-value of differences [seeds, cases]: a two-sided t-test of the seeds' means; nan with fewer than two seeds."""
    by_seed = difference.mean(axis=1)
    if len(by_seed) < 2:
        return math.nan
    if np.ptp(by_seed) == 0:
        return 1.0 if by_seed[0] == 0 else 0.0  # the t-test divides by the spread
    return float(stats.ttest_1samp(by_seed, 0).pvalue)


def hierarchical_interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean of [seeds, cases]: seeds are drawn with replacement, and cases within each.

    scipy.stats.bootstrap draws from one level only.
    """
    rng = np.random.default_rng(seed)
    seeds, cases = values.shape
    drawn_seeds = rng.integers(seeds, size=(RESAMPLES, seeds, 1))
    drawn_cases = rng.integers(cases, size=(RESAMPLES, seeds, cases))
    means = values[drawn_seeds, drawn_cases].mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979, by statsmodels); nan stays nan and is not counted."""
    from statsmodels.stats.multitest import multipletests  # only a study needs it

    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = list(map(float, p_values))
    if known:
        for i, p in zip(known, multipletests([p_values[i] for i in known], method="holm")[1]):
            adjusted[i] = float(p)
    return adjusted
