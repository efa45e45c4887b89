"""The brain in a scan: all that a skull-stripped one shows, or found in a whole head with the atlas' help."""

from __future__ import annotations

import itk
import numpy as np
import torch
from scipy import ndimage

from fedsr_monai.prepare.bias import coarsen
from fedsr_monai.prepare.itk_image import from_itk, to_itk
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import resample_image, voxel_map
from fedsr_monai.transforms.check_scan import BRAIN_LITRES

WORK = 2.0  # mm
MARGIN = 5.0  # mm, by which a brain may reach beyond the atlas' brain, which is larger than most
THROAT = 4.0  # mm, radius of the opening that cuts the threads between brain and skull
SULCUS = 10.0  # mm, radius of the closing that takes the fluid between the gyri in
DARK, BRIGHT = 0.5, 1.25  # grey matter is brighter, fat and vessels are brighter still; white matter = 1
HEAD = 150.0  # mm below the vertex: beyond that is neck


def is_stripped(volume: np.ndarray, affine: np.ndarray) -> bool:
    """Return whether a scan shows a brain alone: exact zeros around it, and as many litres as a brain has."""
    faces = np.concatenate([np.take(volume, (0, -1), axis=axis).ravel() for axis in range(3)])
    litres = np.count_nonzero(volume) * abs(np.linalg.det(affine[:3, :3])) / 1e6
    return (faces == 0).mean() > 0.9 and BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1]


def filled(mask: np.ndarray) -> np.ndarray:
    """Return the largest piece of a mask with its holes filled: dark ventricles may be 0 in a stripped scan."""
    pieces, count = ndimage.label(mask)
    if count > 1:
        mask = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return ndimage.binary_fill_holes(mask)


def head_without_neck(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Cut a whole head [D, H, W] off 150 mm below its vertex, and set the background to 0."""
    image = to_itk(volume, affine)
    otsu = itk.OtsuThresholdImageFilter[type(image), itk.Image[itk.UC, 3]].New(image)
    otsu.SetInsideValue(0)
    otsu.SetOutsideValue(1)
    otsu.Update()
    inside = filled(ndimage.binary_opening(from_itk(otsu.GetOutput()) > 0, iterations=1))
    i, j, k = np.ogrid[tuple(slice(n) for n in volume.shape)]
    height = affine[2, 0] * i + affine[2, 1] * j + affine[2, 2] * k + affine[2, 3]
    if not inside.any():
        return volume
    return np.where(inside & (height > np.percentile(height[inside], 99.9) - HEAD), volume, 0)


def mask_near(prior: np.ndarray, volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Find the brain in a whole head, from a first guess of where it is.

    Near the guess, tissue is brighter than fluid, bone and air (Otsu's threshold); an opening cuts what is connected
    to the brain by threads, the largest piece is the brain, and a closing includes the fluid of the sulci.

    Args:
        prior: bool [D, H, W], the atlas' brain on the scan's voxels.
        volume: the scan [D, H, W], its bias field corrected.
        affine: [4, 4] of the scan.

    Returns:
        The brain, bool [D, H, W].
    """
    small, small_affine = coarsen(volume, affine, WORK)
    prior = coarsen(prior.astype(np.float32), affine, WORK)[0] > 0.5
    if not prior.any():
        return np.zeros(volume.shape, bool)
    box = _box(prior, np.linalg.norm(small_affine[:3, :3], axis=0))
    whole, guess, small = np.zeros(small.shape, np.float32), prior[box], small[box]
    sampling = np.linalg.norm(small_affine[:3, :3], axis=0)
    outside = ndimage.distance_transform_edt(~guess, sampling=sampling)
    core = ndimage.distance_transform_edt(guess, sampling=sampling) > 15
    white = np.percentile(small[core if core.any() else guess], 90)
    values = small[(outside < 2 * MARGIN) & (small < BRIGHT * white)]
    image = to_itk(values[:, None, None], np.eye(4))
    otsu = itk.OtsuThresholdImageFilter[type(image), itk.Image[itk.UC, 3]].New(image)
    otsu.Update()
    dark = min(otsu.GetThreshold(), DARK * white)  # with little fluid, Otsu's threshold separates grey and white matter
    tissue = (outside < MARGIN) & (small > dark) & (small < BRIGHT * white)
    opened = _within(~_within(~tissue, THROAT, sampling), THROAT, sampling)
    brain = filled(opened)
    closed = ~_within(~_within(brain, SULCUS, sampling), SULCUS, sampling)
    closed = filled(closed & (outside < MARGIN))
    whole[box] = closed
    return resample_image(torch.from_numpy(whole)[None], voxel_map(small_affine, affine), volume.shape)[0].numpy() > 0.5


def atlas_brain_on(scan: Grid, atlas: np.ndarray, grid: Grid, matrix: np.ndarray) -> np.ndarray:
    """Return the brain of the atlas, bool, on the voxels of a scan; `matrix` takes points of the scan to the atlas."""
    brain = torch.from_numpy((atlas > 0).astype(np.float32))[None]
    return resample_image(brain, voxel_map(grid.affine, matrix @ scan.affine), scan.shape)[0].numpy() > 0.5


def _box(mask: np.ndarray, sampling: np.ndarray) -> tuple[slice, ...]:
    """Return the box around a mask that holds every voxel on which a result of `mask_near` depends."""
    voxels, room = np.argwhere(mask), np.ceil((MARGIN + SULCUS + THROAT) / sampling).astype(int) + 1
    return tuple(slice(max(0, low), high + 1) for low, high in zip(voxels.min(0) - room, voxels.max(0) + room))


def _within(mask: np.ndarray, distance: float, sampling: np.ndarray) -> np.ndarray:
    """Return all voxels up to `distance` mm from a mask."""
    return ndimage.distance_transform_edt(~mask, sampling=sampling) <= distance
