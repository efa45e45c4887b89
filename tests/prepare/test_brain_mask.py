from __future__ import annotations

import numpy as np
from scipy import ndimage

from fedsr_monai.prepare import brain_mask
from fedsr_monai.prepare.brain_mask import find_brain
from tests.helpers.raw_scans import atlas, raw_scan

IMAGE, LABEL, GRID = atlas(3.0, (64, 72, 64))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_a_brain_is_found_in_a_whole_head_in_one_piece_without_holes():
    volume, labels, own, _ = raw_scan(3, skull=True, source=(IMAGE, LABEL, GRID))
    found = find_brain(volume, own.affine)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(labels > 0, iterations=2))
    assert dice(found, brain) > 0.92
    assert ndimage.label(found)[1] == 1 and np.array_equal(found, ndimage.binary_fill_holes(found))


def test_nothing_is_found_in_nothing():
    assert not find_brain(np.zeros((20, 20, 20), np.float32), np.diag([9, 9, 9, 1.0])).any()


def test_the_weights_are_read_once():
    assert brain_mask.brain_extraction() is brain_mask.brain_extraction()
