from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou
from scipy import ndimage

from fedsr_monai.evaluation import structure_metrics

SPACING = (1.0, 2.0, 3.5)


def ball(centre, radius, shape=(24, 20, 16)):
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def blobs(seed, shape=(24, 20, 16)):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0.02


@pytest.mark.parametrize("pair", [(ball((8, 9, 7), 5), ball((11, 9, 8), 6)), (blobs(1), blobs(2))])
def test_agrees_with_monai(pair):
    found = structure_metrics(*pair, SPACING)
    prediction, reference = (torch.from_numpy(mask)[None, None].float() for mask in pair)
    expected = {
        "dice": compute_dice(prediction, reference),
        "jaccard": compute_iou(prediction, reference),
        "hd95_mm": compute_hausdorff_distance(prediction, reference, True, percentile=95, spacing=SPACING),
        "asd_mm": compute_average_surface_distance(prediction, reference, True, symmetric=True, spacing=SPACING),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("pair", [(ball((8, 9, 7), 5), ball((11, 9, 8), 6)), (blobs(1), blobs(2))])
def test_distances_agree_with_scipy(pair):
    # by another road: distance maps of the whole image, with the voxel size of each axis
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in pair]
    maps = [ndimage.distance_transform_edt(~edge, sampling=SPACING) for edge in edges]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    found = structure_metrics(*pair, SPACING)
    assert found["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert found["asd_mm"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)


def test_distances_are_millimetres():
    reference = np.zeros((20, 20, 20), bool)
    reference[5:9, 5:9, 5:9] = True
    for axis in range(3):
        moved = structure_metrics(np.roll(reference, 2, axis), reference, SPACING)
        assert moved["hd95_mm"] == pytest.approx(2 * SPACING[axis])


def test_volumes_are_millilitres():
    reference, prediction = np.zeros((2, 10, 10, 10), bool)
    reference[:5, :5, :4], prediction[:5, :5, :2] = True, True
    found = structure_metrics(prediction, reference, SPACING)
    assert (found["reference_ml"], found["volume_ml"], found["avd_ml"]) == pytest.approx((0.7, 0.35, 0.35))
    assert found["avd_percent"] == pytest.approx(50.0)
    assert found["dice"] == pytest.approx(2 / 3) and found["jaccard"] == pytest.approx(1 / 2)


def test_equal_masks():
    mask = ball((8, 9, 7), 5)
    found = structure_metrics(mask, mask, SPACING)
    assert (found["dice"], found["jaccard"], found["hd95_mm"], found["asd_mm"], found["avd_ml"]) == (1, 1, 0, 0, 0)


def test_missed_spurious_and_absent():
    mask, empty = ball((8, 9, 7), 5), np.zeros((24, 20, 16), bool)
    diagonal = math.sqrt(24**2 + 40**2 + 56**2)
    missed = structure_metrics(empty, mask, SPACING)
    spurious = structure_metrics(mask, empty, SPACING)
    absent = structure_metrics(empty, empty, SPACING)
    for row in (missed, spurious):
        assert row["dice"] == row["jaccard"] == 0
        assert row["hd95_mm"] == row["asd_mm"] == pytest.approx(diagonal)
    assert [row["missed"] for row in (missed, spurious, absent)] == [1, 0, 0]
    assert missed["avd_percent"] == 100 and math.isnan(spurious["avd_percent"])
    assert all(math.isnan(absent[key]) for key in ("dice", "jaccard", "hd95_mm", "asd_mm", "avd_ml"))
    assert absent["volume_ml"] == absent["reference_ml"] == 0


def test_one_voxel_at_the_border():
    one = np.zeros((4, 4, 4), bool)
    other = one.copy()
    one[0, 0, 0], other[3, 0, 0] = True, True
    assert structure_metrics(one, other, SPACING)["asd_mm"] == 3.0


def test_shapes_must_match():
    with pytest.raises(
        ValueError, match=r"^structure_metrics\(\) got prediction \(2, 2, 2\) and reference \(3, 3, 3\)$"
    ):
        structure_metrics(np.ones((2, 2, 2), bool), np.ones((3, 3, 3), bool), SPACING)
