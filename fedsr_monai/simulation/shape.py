"""The shape of one subject's brain: an affine and a diffeomorphism from the template, drawn from a population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage

from fedsr_monai.atlas.build import BRAIN_CENTRE, grid_affine, transform
from fedsr_monai.atlas.templates import high_resolution_templates
from fedsr_monai.simulation.fields import grid_axes, smooth_field

# Terms of the velocity field: smoothness (mm), RMS of each component (mm), fraction of the variance that is left-right
# symmetric.
SCALES = ((30.0, 1.6, 0.8), (14.0, 2.0, 0.5), (7.0, 1.5, 0.3), (4.5, 0.7, 0.3))
SQUARINGS = 7
VENTRICLE_DECAY = 9.0  # mm over which the growth of the ventricles fades into the tissue
ROTATION_SD, TRANSLATION_SD = 3.0, 2.0  # degrees, mm
# The velocity has a grid of its own, so that a subject is the same at every image resolution.
_SPACING, _SHAPE = 3.0, (65, 75, 67)


@dataclass(frozen=True)
class Population:
    """The spread of brain shapes at a site."""

    scale: float = 1.0  # mean brain size relative to the template, along each axis
    scale_sd: float = 0.02
    ventricle: float = 0.0  # mean outward shift of the ventricles' walls, mm
    ventricle_sd: float = 0.6
    amplitude: float = 1.0  # of the velocity field; above 1.15 shapes get lumpy


def subject_points(
    rng: np.random.Generator, population: Population, affine: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """Return the position of each voxel of the subject's grid in the template: float32 [3, D, H, W], mm.

    x -> A x + u(A x) with the affine A and u = exp(v) - id, where exp(v) is the flow of a stationary velocity field after
    unit time.
    """
    matrix = random_affine(rng, population)
    growth = population.ventricle + population.ventricle_sd * _bounded(rng)
    displacement = integrate(random_velocity(rng, population.amplitude, growth))
    points = transform(matrix @ affine, np.indices(tuple(shape), dtype=np.float32))
    voxels = transform(np.linalg.inv(velocity_affine()), points)
    for i in range(3):
        points[i] += ndimage.map_coordinates(displacement[i], voxels, order=1, mode="nearest", output=np.float32)
    return points


def random_affine(rng: np.random.Generator, population: Population) -> np.ndarray:
    """Draw the affine [4, 4] from subject to template, in mm: rotation about the brain's centre, shift, scale along each axis."""
    angles = np.deg2rad(ROTATION_SD * _bounded(rng, 3))
    shift = TRANSLATION_SD * _bounded(rng, 3)
    # half of the variance of the scale is common to the three axes
    scale = population.scale * (1 + population.scale_sd * (_bounded(rng) + _bounded(rng, 3)) / np.sqrt(2))
    matrix = np.diag(1 / scale)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(3)
        rotation[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = rotation @ matrix
    result = np.eye(4)
    result[:3, :3] = matrix
    result[:3, 3] = BRAIN_CENTRE - matrix @ BRAIN_CENTRE + shift
    return result


def random_velocity(rng: np.random.Generator, amplitude: float, growth: float) -> np.ndarray:
    """Draw a velocity [3, X, Y, Z] in mm on the velocity grid: noise of four scales, and ventricle walls that move out by `growth` mm."""
    axes = grid_axes(velocity_affine(), _SHAPE)
    velocity = np.asarray(
        sum(
            amplitude * rms * smooth_field(rng, axes, sigma, symmetric, mirror=(-1, 1, 1))
            for sigma, rms, symmetric in SCALES
        )
    )
    if not growth:
        return velocity
    # the walls move outwards where the subject looks further inside the template
    return velocity - np.float32(growth) * _outward()


def integrate(velocity: np.ndarray) -> np.ndarray:
    """Return the displacement exp(v) - id, in mm, by scaling and squaring on the velocity grid.

    It uses scipy rather than MONAI's `DVF2DDF`, because workers fork, and torch's thread pool does not survive a fork.
    """
    displacement = velocity / np.float32(2**SQUARINGS)
    identity = np.indices(_SHAPE, dtype=np.float32)
    for _ in range(SQUARINGS):
        points = identity + displacement / np.float32(_SPACING)
        step = [ndimage.map_coordinates(d, points, order=1, mode="nearest", output=np.float32) for d in displacement]
        displacement = displacement + np.stack(step)
    return displacement


def velocity_affine() -> np.ndarray:
    """Return the affine [4, 4], voxel to millimetre, of the grid on which velocities are drawn."""
    return grid_affine(_SPACING, _SHAPE)


@lru_cache(maxsize=1)
def _outward() -> np.ndarray:
    """Return vectors that point away from the ventricles; their mean length is 1 at the walls and fades with the distance."""
    templates = high_resolution_templates()
    points = transform(np.linalg.inv(templates.affine) @ velocity_affine(), np.indices(_SHAPE, dtype=np.float32))
    distance = ndimage.map_coordinates(templates.ventricle_distance, points, order=1, mode="nearest")
    field = np.stack(np.gradient(distance, _SPACING)) * np.exp(-np.abs(distance) / VENTRICLE_DECAY)
    # smoothed: the direction flips in the middle of a ventricle, and a sharp flip nearly folds
    field = ndimage.gaussian_filter(field, (0, 1.5, 1.5, 1.5))
    wall = np.abs(distance) < 1
    return (field / np.sqrt((field[:, wall] ** 2).sum(0)).mean()).astype(np.float32)


def _bounded(rng: np.random.Generator, size: int | None = None) -> Any:
    """Draw standard normal numbers, clipped to +-2.5 so that no subject is an extreme outlier."""
    return np.clip(rng.standard_normal(size), -2.5, 2.5)
