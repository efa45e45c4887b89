"""One simulated subject: an anatomy with a shape of its own, imaged by a scanner, with exact labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

from fedsr_monai.atlas.build import (
    LOW_PASS,
    fine_label,
    grid_affine,
    label_of,
    sample,
    soft_labels,
    soften,
    transform,
    voxel_points,
)
from fedsr_monai.atlas.templates import high_resolution_templates
from fedsr_monai.networks.protocols import NEUROMORPHOMETRICS
from fedsr_monai.simulation.fields import grid_axes
from fedsr_monai.simulation.profiles import Profile
from fedsr_monai.simulation.protocols import DRAWN_PROTOCOLS
from fedsr_monai.simulation.real_anatomy import read_anatomy
from fedsr_monai.simulation.scanner import acquire
from fedsr_monai.simulation.shape import Population, subject_points

# Deformation of a real anatomy: the pose varies as in the drawn subjects, the shape by about 1.5 mm on average.
SMALL = Population(ventricle_sd=0.0, amplitude=0.3)


@lru_cache(maxsize=2)
def drawn_labels(sigma: tuple[float, float, float], protocol: str) -> np.ndarray:
    """Return the maps of `soft_labels` in the borders of a protocol of drawn subjects."""
    if protocol == NEUROMORPHOMETRICS:
        return soft_labels(sigma)[0]
    return soften(_regions(protocol), high_resolution_templates().mask, sigma)[0]


@lru_cache(maxsize=2)
def _regions(protocol: str) -> np.ndarray:
    templates = high_resolution_templates()
    spacing = np.linalg.norm(templates.affine[:3, :3], axis=0)
    return DRAWN_PROTOCOLS[protocol](templates.label, templates.csf, spacing)


def atlas_label(spacing: float | Sequence[float], shape: Sequence[int], protocol: str) -> np.ndarray:
    """Return the labels uint8 [D, H, W] of `build_atlas` in the borders of a protocol of drawn subjects."""
    affine = grid_affine(spacing, shape)
    points = voxel_points(affine, shape, high_resolution_templates())
    soft = drawn_labels(tuple(LOW_PASS * np.diag(affine)[:3]), protocol)
    return label_of(np.stack([sample(channel, points) for channel in soft]))


def drawn_fine_label(spacing: float | Sequence[float], shape: Sequence[int], protocol: str) -> np.ndarray:
    """Return the labels of the atlas of drawn sites on finer voxels; see `fine_label`."""
    templates = high_resolution_templates()
    return fine_label(_regions(protocol), templates.mask, templates.affine, spacing, shape)


def simulate_subject(
    profile: Profile,
    seed: int | Sequence[int],
    spacing: float | Sequence[float],
    shape: Sequence[int],
    protocol: str = NEUROMORPHOMETRICS,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate one subject of a site: image float32 [D, H, W] in [0, 1] and labels uint8 [D, H, W] on the grid of `grid_affine`.

    Both come from the same warp of the (low-passed) one-hot maps. The labels are their argmax. The image is not a warped
    template: it is made from these maps with tissue means, another template's texture and the scanner's artefacts. `seed`
    is anything that `numpy.random.SeedSequence` takes. Shape and appearance are drawn from separate streams, and the shape
    does not depend on the grid, so that a subject stays the same under another scanner or resolution. The image does not
    depend on the protocol.

    Raises:
        UserError: the grid cuts the brain, or the template packages are not installed.
    """
    affine = grid_affine(spacing, shape)
    templates = high_resolution_templates()
    anatomy, look = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    points = subject_points(anatomy, profile.population, affine, shape)
    voxels = transform(np.linalg.inv(templates.affine), points)
    # most of the grid is air: only the voxels that hold some brain are looked up in the maps of the regions
    sigma = tuple(LOW_PASS * np.diag(affine)[:3])
    soft, near = soft_labels(sigma)
    inside = ndimage.map_coordinates(near, voxels, order=0, output=bool)
    voxels = voxels[:, inside]
    fractions = np.stack([sample(channel, voxels) for channel in soft])
    drawn = fractions
    if protocol != NEUROMORPHOMETRICS:
        drawn = np.stack([sample(channel, voxels) for channel in drawn_labels(sigma, protocol)])
    label = np.zeros(inside.shape, np.uint8)
    label[inside] = label_of(drawn)
    image = acquire(look, profile.scanner, fractions / 255, inside, voxels, templates, grid_axes(affine, shape))
    return image, label


def image_anatomy(
    profile: Profile,
    path: str,
    protocol: str,
    seed: int | Sequence[int],
    spacing: float | Sequence[float],
    shape: Sequence[int],
    deform: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a scan of a real anatomy, deformed a little: image and labels as from `simulate_subject`.

    Args:
        profile: the hospital whose scanner takes the image; its population is not used.
        path: label map of FreeSurfer ids.
        protocol: label protocol whose borders the labels follow; the image does not depend on it.
        seed: seed of deformation and image, which have separate streams.
        spacing, shape: the grid of `grid_affine`.
        deform: False leaves the anatomy as it is.

    Raises:
        UserError: the grid cuts the brain, or the label map cannot be used.
    """
    affine = grid_affine(spacing, shape)
    anatomy = read_anatomy(path, protocol)
    body, look = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    if deform:
        points = subject_points(body, SMALL, affine, shape)
    else:
        points = transform(affine, np.indices(tuple(shape), dtype=np.float32))
    voxels = transform(np.linalg.inv(anatomy.affine), points)
    sigma = LOW_PASS * np.diag(affine)[:3] / np.linalg.norm(anatomy.affine[:3, :3], axis=0)
    soft, near = soften(anatomy.label, anatomy.mask, sigma)
    inside = ndimage.map_coordinates(near, voxels, order=0, output=bool)
    voxels = voxels[:, inside]
    fractions = np.stack([sample(channel, voxels) for channel in soft])
    if anatomy.structures is anatomy.label:
        drawn = fractions
    else:
        drawn = np.stack([sample(channel, voxels) for channel in soften(anatomy.structures, anatomy.mask, sigma)[0]])
    label = np.zeros(inside.shape, np.uint8)
    label[inside] = label_of(drawn)
    image = acquire(look, profile.scanner, fractions / 255, inside, voxels, anatomy, grid_axes(affine, shape))
    return image, label
