from __future__ import annotations

import numpy as np
import pytest

from fedsr_monai.atlas import build as module
from fedsr_monai.atlas.build import BRAIN_CENTRE, BRAIN_SIZE, GRIDS, build_atlas, default_shape, grid_affine, label_of
from fedsr_monai.atlas.templates import high_resolution_templates
from fedsr_monai.errors import UserError


def test_the_centre_and_size_are_those_of_the_labels():
    templates = high_resolution_templates()
    inside = np.argwhere(templates.label)
    lower, upper = inside.min(0), inside.max(0)
    assert tuple(templates.affine[:3, 3] + (lower + upper) / 2) == BRAIN_CENTRE
    assert tuple(upper - lower + 1) == BRAIN_SIZE


@pytest.mark.parametrize("spacing, shape", [*GRIDS.items(), (6.0, (32, 32, 32)), ((1.0, 2.0, 3.0), (160, 96, 60))])
def test_the_grid_is_centred_on_the_brain(spacing, shape):
    affine = grid_affine(spacing, shape)
    middle = affine @ [*((np.array(shape) - 1) / 2), 1]
    assert np.allclose(middle[:3], BRAIN_CENTRE)
    assert np.array_equal(np.diag(affine)[:3], np.broadcast_to(spacing, 3))


def test_a_grid_that_cuts_the_brain_is_refused():
    with pytest.raises(UserError, match=r"^grid: .*1 x 1 x 1 mm, which cuts the brain") as error:
        grid_affine(1.0, (128, 128, 128))
    assert error.value.expected == "at least (143, 180, 153) voxels"


@pytest.mark.parametrize(
    "spacing, shape", [(0.0, (80, 96, 80)), (float("nan"), (80, 96, 80)), (2.0, (80, 0, 80)), (2.0, (80, 96))]
)
def test_a_senseless_grid_is_refused(spacing, shape):
    with pytest.raises(UserError, match="^grid: .*three positive sizes and spacings"):
        grid_affine(spacing, shape)


def test_a_spacing_without_grid_is_refused():
    with pytest.raises(UserError, match=r"^spacing: found 3 mm.*\[1.5, 2.0, 2.5\]; give the shape too$"):
        default_shape(3)


@pytest.fixture(scope="module")
def atlas():
    return build_atlas(2.0, (80, 96, 80))


def test_counts_at_2_mm(atlas):
    """Counts of an independent construction along the same recipe; ours are within 4 %, the small ones within rounding."""
    expected = [
        371,
        76369,
        103955,
        2214,
        4074,
        2717,
        1199,
        1381,
        419,
        3336,
        1195,
        307,
        19964,
    ]  # ours where borders were drawn anew
    counts = np.bincount(atlas[1].ravel(), minlength=14)[1:]
    assert np.allclose(counts, expected, rtol=0.04)


def test_the_image_is_in_range_with_empty_background(atlas):
    image, label, _ = atlas
    assert image.dtype == np.float32 and label.dtype == np.uint8
    assert image.min() == 0 and image.max() == 1
    assert not image[[0, -1]].any() and image[label > 0].min() > 0
    means = [image[label == k].mean() for k in (4, 3, 2)]
    assert means == sorted(means) and means[0] < 0.65 < means[1] < 0.85 < means[2]


def test_orientation_is_ras(atlas):
    """Cerebellum behind and below, frontal pole in front: along +y anterior, +z superior; left and right are mirrored."""
    _, label, affine = atlas
    centre = {k: affine[:3, :3] @ np.argwhere(label == k).mean(0) + affine[:3, 3] for k in (3, 8, 10, 13)}
    assert centre[13][1] < centre[3][1] - 30 and centre[13][2] < centre[3][2] - 30
    assert centre[8][1] > centre[10][1] and all(abs(c[0]) < 2.5 for c in centre.values())


@pytest.mark.parametrize("spacing, shape", [(2.5, (64, 80, 64)), (6.0, (32, 32, 32))])
def test_every_structure_survives_coarse_grids(spacing, shape):
    assert set(np.unique(build_atlas(spacing, shape)[1])) == set(range(14))


def test_what_lies_outside_the_brain_counts_as_background():
    share = np.zeros((14, 3), np.float32)
    share[2] = 120, 130, 80
    share[0] = 0, 0, 100
    assert label_of(share).tolist() == [0, 2, 0]


def test_what_is_kept_in_the_cache_is_what_is_built_now():
    image, label, affine = build_atlas(6.0, (32, 32, 32))
    built = module._built(affine, (32, 32, 32))
    assert np.array_equal(built["image"], image) and np.array_equal(built["label"], label)
