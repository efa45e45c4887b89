"""The labelled atlas, built on any grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

from fedsr_monai.atlas.templates import NUM_REGIONS, Templates, cached, high_resolution_templates
from fedsr_monai.errors import UserError
from fedsr_monai.labels import LABELS, NUM_CLASSES
from fedsr_monai.spatial.grid import LEAST_VOXELS, fine_affine, fine_shape
from fedsr_monai.spatial.resampling import nearest_labels, voxel_map

# Measured on the 2009a template: centre and size of the bounding box of all labelled voxels, in millimetres of its space.
BRAIN_CENTRE = (0.0, -16.5, 6.0)
BRAIN_SIZE = (143.0, 180.0, 153.0)
GRIDS = {2.0: (80, 96, 80), 1.5: (128, 128, 128), 2.5: (64, 80, 64)}
LOW_PASS = 0.425  # standard deviation of the filter before down-sampling, in voxels of the coarser grid


def grid_affine(spacing: float | Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Return the affine [4, 4] (voxel to millimetre, RAS+) of the grid that is centred on the bounding box of the brain.

    Raises:
        UserError: spacing or shape is not positive, or the grid is too small to hold the brain.
    """
    steps = np.broadcast_to(np.asarray(spacing, dtype=float), 3)
    shape = tuple(int(size) for size in shape)
    if len(shape) != 3 or min(shape) < 1 or not (np.isfinite(steps).all() and steps.min() > 0):
        raise UserError("grid", found=f"{shape} at {_text(steps)} mm", expected="three positive sizes and spacings")
    if max(shape) < LEAST_VOXELS:
        expected = f"at least {LEAST_VOXELS} voxels along one axis, for the network's coarsest level"
        raise UserError("grid", found=f"{shape} at {_text(steps)} mm", expected=expected, fix="take more voxels")
    extent = steps * shape
    if (extent < BRAIN_SIZE).any():
        needed = tuple(int(np.ceil(size / step)) for size, step in zip(BRAIN_SIZE, steps))
        raise UserError(
            "grid",
            found=f"{shape} at {_text(steps)} mm, which cuts the brain",
            expected=f"at least {needed} voxels",
            fix="take more or larger voxels",
        )
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = np.asarray(BRAIN_CENTRE) - steps * (np.asarray(shape) - 1) / 2
    return affine


def default_shape(spacing: float) -> tuple[int, int, int]:
    """Return the shape of the project's grid at this spacing in millimetres.

    Raises:
        UserError: the project has no grid of this spacing.
    """
    if spacing not in GRIDS:
        raise UserError(
            "spacing",
            found=f"{spacing} mm without a shape",
            expected=f"one of {sorted(GRIDS)}",
            fix="give the shape too",
        )
    return GRIDS[spacing]


def build_atlas(spacing: float | Sequence[float], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build the atlas on the grid of `grid_affine`.

    The image and the one-hot label maps of the 1 mm templates are low-passed and sampled; the label is the argmax. This
    takes about two seconds, and the result is kept in the cache (see `cached`).

    Returns:
        Image float32 [D, H, W] in [0, 1] (0 outside the brain), labels uint8 [D, H, W] and affine [4, 4].

    Raises:
        UserError: the grid cuts the brain, a structure has no voxel on it, or the template packages are not installed.
    """
    affine = grid_affine(spacing, shape)
    grid = repr((affine.tolist(), [int(size) for size in shape]))
    name = f"atlas-{hashlib.sha256(grid.encode()).hexdigest()[:16]}"
    arrays = cached(name, ("image", "label"), lambda: _built(affine, shape))
    return arrays["image"], arrays["label"], affine


def _built(affine: np.ndarray, shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Return image and label of `build_atlas`, by name."""
    templates = high_resolution_templates()
    points = voxel_points(affine, shape, templates)
    sigma = tuple(LOW_PASS * np.diag(affine)[:3])
    probability = np.stack([sample(channel, points) for channel in soft_labels(sigma)[0]])
    label = label_of(probability)
    empty = [LABELS[k] for k in range(NUM_CLASSES) if not (label == k).any()]
    if empty:
        raise UserError(
            "grid",
            found=f"{tuple(shape)} without a voxel of {', '.join(empty)}",
            expected="all structures",
            fix="take smaller voxels",
        )
    smooth = ndimage.gaussian_filter(templates.t1, sigma)
    image = sample(smooth, points) * (probability.sum(0) >= 127.5)
    image = np.clip(image / np.percentile(image[image > 0], 99.9), 0, 1)
    return {"image": image.astype(np.float32), "label": label}


@lru_cache(maxsize=2)
def soft_labels(sigma: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the 1 mm one-hot maps of the regions after a Gaussian of `sigma` mm: uint8 [NUM_REGIONS, D, H, W], where 255 is 1.

    Channel 0 is the CSF between brain and mask, so that the sum of all channels is the (soft) brain mask. The second
    result, bool [D, H, W], is True where any channel is above 0.
    """
    templates = high_resolution_templates()
    return soften(templates.label, templates.mask, sigma)


def soften(regions: np.ndarray, mask: np.ndarray, sigma: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the one-hot maps of `regions` inside `mask` after a Gaussian of `sigma` voxels; see `soft_labels`."""
    result = np.empty((NUM_REGIONS, *regions.shape), np.uint8)
    for k in range(NUM_REGIONS):
        one_hot = ((regions == k) & mask).astype(np.float32)
        result[k] = np.rint(255 * ndimage.gaussian_filter(one_hot, sigma, truncate=3))
    return result, np.any(result, axis=0)


def label_of(probability: np.ndarray) -> np.ndarray:
    """Return the label with the largest fraction in [NUM_REGIONS, ...] (sum at most 255); uint8.

    Everything that belongs to no structure counts together as background: fluid, the space outside the mask, and brain
    tissue outside the 13 structures.
    """
    with_outside = probability[:NUM_CLASSES].copy()
    with_outside[0] = 255 - with_outside[1:].sum(0)
    return with_outside.argmax(0).astype(np.uint8)


def structures_of(regions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the labels uint8 [D, H, W] of an anatomy's regions; regions that are no structure, or outside `mask`, are background."""
    return np.where(mask & (regions < NUM_CLASSES), regions, 0).astype(np.uint8)


def fine_label(
    regions: np.ndarray, mask: np.ndarray, affine: np.ndarray, spacing: float | Sequence[float], shape: Sequence[int]
) -> np.ndarray:
    """Return the labels of an anatomy on voxels a third the size of those of `grid_affine` (see `fine_shape`); uint8 [D, H, W].

    Args:
        regions: regions of the anatomy, uint8 [D, H, W].
        mask: brain mask on the same voxels.
        affine: [4, 4] of both.
        spacing, shape: the grid of `grid_affine`.
    """
    matrix = voxel_map(affine, fine_affine(grid_affine(spacing, shape)))
    return nearest_labels(structures_of(regions, mask), matrix, fine_shape(shape))


def voxel_points(affine: np.ndarray, shape: Sequence[int], templates: Templates) -> np.ndarray:
    """Return the positions [3, D, H, W] of a grid's voxels, in voxel coordinates of the templates."""
    matrix = np.linalg.inv(templates.affine) @ affine
    return transform(matrix, np.indices(tuple(shape), dtype=np.float32))


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply an affine map [4, 4] to `points` [3, ...]; written out because the last bits of a BLAS product depend on the threads."""
    m = matrix.astype(np.float32)
    return np.stack([m[i, 0] * points[0] + m[i, 1] * points[1] + m[i, 2] * points[2] + m[i, 3] for i in range(3)])


def sample(volume: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolate a volume linearly at `points` [3, ...]; float32, 0 outside."""
    return ndimage.map_coordinates(volume, points, order=1, output=np.float32)


def _text(spacing: np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in spacing)
