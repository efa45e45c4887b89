from __future__ import annotations

import math

import numpy as np
import pytest

from fedsr_monai.labels.agreement import agreement


def test_agreement_is_the_mean_dice_of_what_either_map_has():
    first = np.array([[0, 1, 1, 2], [2, 3, 0, 0]], np.uint8)
    second = np.array([[0, 1, 2, 2], [2, 0, 0, 0]], np.uint8)
    dice = [2 * 1 / 3, 2 * 2 / 5, 0.0]  # 1, 2, and 3, which only the first has
    assert agreement(first, second) == agreement(second, first) == pytest.approx(np.mean(dice))


def test_agreement_of_equal_and_of_empty_maps():
    labels = np.arange(14, dtype=np.uint8)
    assert agreement(labels, labels) == 1
    assert math.isnan(agreement(np.zeros(4, np.uint8), np.zeros(4, np.uint8)))
