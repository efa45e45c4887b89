from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from fedsr_monai.errors import UserError
from fedsr_monai.prepare.alignment import Alignment
from fedsr_monai.prepare.pipeline import prepare_scan
from fedsr_monai.prepare.quality import CORRELATION, correlation_ratio, quality
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.nifti import Volume
from tests.helpers.raw_scans import atlas, raw_scan

pytestmark = pytest.mark.slow

IMAGE, _, GRID = atlas()


def prepare(voxels: np.ndarray, affine: np.ndarray, mask: np.ndarray | None = None):
    return prepare_scan(Volume(voxels.astype(np.float32), affine), mask, IMAGE, GRID, "scan")


def test_a_brain_is_found_in_a_whole_head():
    volume, labels, own, place = raw_scan(3, skull=True)
    prepared = prepare(volume, own.affine)
    assert prepared.mask_from == "computed"
    brain = labels > 0
    assert 2 * (prepared.mask & brain).sum() / (prepared.mask.sum() + brain.sum()) > 0.9
    loop = prepared.matrix @ place
    points = np.argwhere(IMAGE > 0) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
    assert np.linalg.norm(points @ loop[:3, :3].T + loop[:3, 3] - points, axis=1).mean() < 6


def test_the_number_of_threads_changes_nothing():
    volume, _, own, _ = raw_scan(5)
    found, before = [], torch.get_num_threads()
    for threads in (4, 1):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        torch.set_num_threads(threads)
        found.append(prepare(volume, own.affine))
    torch.set_num_threads(before)
    assert np.array_equal(found[0].matrix, found[1].matrix) and np.array_equal(found[0].brain, found[1].brain)


def test_the_bias_field_goes():
    volume, labels, own, _ = raw_scan(2)
    prepared = prepare(volume, own.affine, labels > 0)
    assert prepared.mask_from == "given"
    white = labels == 2
    before, after = (
        volume[white].std() / volume[white].mean(),
        prepared.brain[white].std() / prepared.brain[white].mean(),
    )
    assert after < 0.75 * before
    assert not prepared.brain[~prepared.mask].any()


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ("noise", "a brain mask (computed) of "),
        ("noise in a brain's shape", "no likeness to the atlas that it was registered to (correlation ratio 0."),
        ("front to back", "a better fit to the atlas turned by 180 degrees about z"),
        ("voxels of twice the size", "a brain mask (given) of "),
    ],
)
def test_what_is_not_a_brain_or_has_a_wrong_header_is_refused(case, found):
    volume, labels, own, _ = raw_scan(1)
    noise = np.random.default_rng(0).integers(1, 900, volume.shape)
    affine, mask = own.affine, labels > 0
    if case == "noise":
        volume, mask = noise, None
    elif case.startswith("noise in"):
        volume = np.where(volume > 0, noise, 0)  # not the labels: these are 0 in the sulci
    elif case == "front to back":
        affine = np.diag([1, -1, 1, 1.0]) @ affine
    else:
        affine = affine @ np.diag([2, 2, 2, 1.0])
    with pytest.raises(UserError) as caught:
        prepare(volume, affine, mask)
    assert caught.value.where == "scan" and caught.value.found.startswith(found) and "\n" not in str(caught.value)


def test_the_correlation_ratio():
    rng = np.random.default_rng(0)
    x = rng.random(20000)
    assert correlation_ratio(x, (x - 0.5) ** 2) > 0.99  # any function, not only a rising one
    assert correlation_ratio(x, rng.random(20000)) < 0.01
    assert correlation_ratio(x, np.ones(20000)) == 0


@pytest.fixture(scope="module")
def fine() -> tuple[np.ndarray, Grid]:
    image, _, grid = atlas(2.0, (80, 96, 80))
    return image, grid


def ratio(on_grid: np.ndarray, image: np.ndarray, grid: Grid) -> float:
    alignment = Alignment(np.eye(4), 0.0, np.eye(3), 0.0)
    return quality(alignment, on_grid.astype(np.float32), image, grid.spacing).correlation


def test_a_noisy_brain_of_any_contrast_looks_like_the_atlas(fine):
    image, grid = fine
    rng = np.random.default_rng(0)
    for contrast in (image, 1.1 - image):
        noisy = np.where(image > 0, np.clip(contrast + 0.25 * rng.standard_normal(image.shape), 0.01, None), 0)
        assert correlation_ratio(noisy[image > 0], image[image > 0]) < 0.45  # voxel by voxel
        assert ratio(noisy, image, grid) > 0.6


@pytest.mark.parametrize(
    "case", ["white noise", "smooth noise", "depth", "upside down", "back to front", "30 degrees", "20 mm"]
)
def test_what_has_a_brain_s_shape_but_not_its_contents_does_not_look_like_the_atlas(fine, case):
    image, grid = fine
    inside = image > 0
    rng = np.random.default_rng(0)
    if case == "white noise":
        content = rng.random(image.shape)
    elif case == "smooth noise":
        content = ndimage.gaussian_filter(rng.standard_normal(image.shape), 4)
        content -= content.min()
    elif case == "depth":
        content = ndimage.distance_transform_edt(inside)
    elif case == "30 degrees":
        content = ndimage.rotate(image, 30, axes=(0, 1), reshape=False, order=1)
    elif case == "20 mm":
        content = ndimage.shift(image, (0, 10, 0), order=1)
    else:
        content = np.flip(image, 2 if case == "upside down" else 1)
    if case.endswith("noise") or case == "depth":
        content = np.where(inside, content / content.max() + 0.1, 0)
    assert ratio(content, image, grid) < 0.9 * CORRELATION
