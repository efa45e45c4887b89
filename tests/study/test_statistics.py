from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedsr_monai.study.statistics import contrast, hierarchical_interval, holm


def test_a_contrast_is_a_paired_t_test_of_the_seeds():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.02, (5, 12)), rng.normal(0.79, 0.02, (5, 12))
    found = contrast(first, second)
    assert found.p == pytest.approx(stats.ttest_rel(first.mean(1), second.mean(1)).pvalue)
    assert found.mean == pytest.approx((first - second).mean()) and (found.seeds, found.cases) == (5, 12)
    assert found.low < found.mean < found.high


def test_one_seed_has_no_p_value():
    assert math.isnan(contrast(np.ones((1, 3)), np.zeros((1, 3))).p)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        values = rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, (12, 8))  # cases of a seed vary together
        low, high = hierarchical_interval(values, seed=trial)
        hits += low < 0 < high
    assert 51 <= hits  # 95 % of 60 is 57; the bootstrap of 12 units is a little short


def test_the_interval_of_correlated_cases_is_wider_than_that_of_independent_ones():
    by_seed = np.repeat(np.random.default_rng(2).normal(0, 1, (6, 1)), 10, axis=1)
    low, high = hierarchical_interval(by_seed)
    naive = 2 * 1.96 * by_seed.std() / math.sqrt(by_seed.size)
    assert high - low > 2 * naive


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = holm([0.02, math.nan, 0.5])
    assert adjusted[0] == pytest.approx(0.04) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.5)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        contrast(np.array([[np.nan, 1.0]]), np.ones((1, 2)))
    with pytest.raises(ValueError, match="shape"):
        contrast(np.ones((2, 3)), np.ones((2, 4)))
