from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fedsr_monai.labels import COLOURS
from fedsr_monai.report.figures import (
    as_bright,
    bent_grid,
    deformation_figure,
    error_figure,
    overlay_figure,
    richest_slice,
    slice_of,
)


def pixels(encoded):
    image = Image.open(io.BytesIO(encoded))
    assert image.format == "WEBP" and image.width == 1200
    return np.asarray(image.convert("RGB")).astype(int)


def has_colour(area, label):
    return bool((np.abs(area - COLOURS[label]).max(axis=-1) < 50).any())


def test_the_patients_right_is_on_the_left():
    volume = np.zeros((4, 5, 6))
    volume[3, 1, 2] = 1  # RAS+: the last index along x is the patient's right
    assert slice_of(volume, 2, 2).shape == (5, 4) and slice_of(volume, 2, 2)[1, 0] == 1
    assert slice_of(volume, 1, 1).shape == (6, 4) and slice_of(volume, 1, 1)[2, 0] == 1
    volume[:] = 0
    volume[2, 4, 5] = 1  # in front, above: on the left of a sagittal slice, and the last row is drawn on top
    assert slice_of(volume, 0, 2)[5, 0] == 1


def test_richest_slice(volumes):
    label = np.zeros((6, 6, 6), np.uint8)
    label[:, :, 1:3], label[2, 2, 2] = 1, 2
    assert richest_slice(label, 2) == 2
    assert richest_slice(np.zeros((6, 6, 8), np.uint8), 2) == 4
    assert 6 <= richest_slice(volumes["label"], 2) < 14


def test_outlines_have_the_colours_of_the_structures(volumes):
    sheet = pixels(overlay_figure(volumes))
    scan, reference, segmentation, registration = np.array_split(sheet, 4, axis=1)
    assert has_colour(reference, 7) and has_colour(registration, 7)
    assert not has_colour(segmentation, 7)  # the caudate was missed
    assert has_colour(segmentation, 6) and not has_colour(scan, 6)


def test_error_maps_share_one_scale(volumes):
    sheet = pixels(error_figure(volumes))
    body = sheet[60:-40]
    width = int(1200 / (5 + 0.305))  # five panels and the bar
    before, after = body[:, 2 * width + 20 : 3 * width - 20], body[:, 4 * width + 20 : 5 * width - 20]
    assert before.max() > 150
    assert after.max() < 60  # the warped atlas is the scan: nothing but black and the film


def test_a_coil_profile_is_no_error_and_a_shift_is(volumes):
    scan, spacing = volumes["image"].astype(np.float32), (1.0, 1.0, 1.0)
    profile = np.linspace(0.7, 1.4, scan.shape[1], dtype=np.float32)[:, None]
    plain, matched = (
        np.abs(atlas - scan)[scan > 0].mean()
        for atlas in (scan * profile, as_bright(scan * profile, scan, spacing, 4.0))
    )
    assert matched < 0.35 * plain
    shifted = np.roll(scan, 2, axis=0)
    assert np.abs(as_bright(shifted, scan, spacing) - scan).mean() > 0.5 * np.abs(shifted - scan).mean()
    np.testing.assert_allclose(as_bright(scan, scan, spacing), scan, atol=1e-6)
    assert not as_bright(np.zeros_like(scan), scan, spacing).any()


def test_folds_are_marked(volumes):
    yellow = [np.abs(pixels(deformation_figure(volumes)) - (255, 230, 0)).max(axis=-1) < 30]
    folded = dict(volumes)
    folded["ddf"] = volumes["ddf"].copy()
    folded["ddf"][0] = -2 * np.arange(24, dtype=np.float16)[:, None, None]  # x -> -x
    yellow.append(np.abs(pixels(deformation_figure(folded)) - (255, 230, 0)).max(axis=-1) < 30)
    assert yellow[0].sum() < 200 < 5000 < yellow[1].sum()  # the scale of the displacement ends in a yellow


def test_bent_grid_goes_where_the_field_points(volumes):
    lines = bent_grid(volumes["ddf"].astype(float), axis=2, index=10, step=4).get_segments()
    straight = bent_grid(np.zeros((3, 24, 28, 20)), axis=2, index=10, step=4).get_segments()
    # two voxels to the patient's right is two columns to the left on the picture
    np.testing.assert_allclose(np.array(lines[0]) - straight[0], np.broadcast_to([-2, 0], lines[0].shape))


@pytest.mark.parametrize("draw", [overlay_figure, error_figure, deformation_figure])
def test_an_empty_case_is_drawn(volumes, draw):
    empty = {key: value if key == "spacing" else np.zeros_like(value) for key, value in volumes.items()}
    assert pixels(draw(empty)).any()


def test_a_large_scan_in_half_precision_is_drawn(volumes):
    large = {key: value for key, value in volumes.items() if key == "spacing"}
    large |= {k: v.repeat(3, -1).repeat(3, -2).repeat(3, -3) for k, v in volumes.items() if k != "spacing"}
    assert (large["image"] > 0).sum() > 65504  # more voxels than half precision can count
    scan = np.array_split(pixels(overlay_figure(large)), 4, axis=1)[0]
    assert scan.max() > 240 and 0.2 < (scan.max(axis=-1) > 60).mean() < 0.9
