"""Smooth random fields in millimetres, which are the same on every grid that they are sampled on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from fedsr_monai.atlas.build import BRAIN_CENTRE

_HALF_WIDTH = 120.0  # mm around the brain's centre that are filled with noise


def smooth_field(
    rng: np.random.Generator,
    axes: Sequence[np.ndarray],
    sigma: float,
    symmetric: float = 0.0,
    mirror: Sequence[float] = (1,),
) -> np.ndarray:
    """Return unit-variance white noise, smoothed by a Gaussian of `sigma` mm, on the grid of `axes`: float32 [C, X, Y, Z].

    The noise is drawn on a lattice of its own, fixed in space, so that seed and position alone determine the value.

    Args:
        rng: source of the noise; C numbers per lattice point are taken from it, or twice as many with `symmetric`.
        axes: positions in mm along x, y, z (RAS+).
        sigma: standard deviation of the Gaussian.
        symmetric: fraction of the variance that is the same left and right (midline at x = 0).
        mirror: one entry per channel, -1 for a component that changes its sign with the side (the x component of a
            vector).
    """
    step = sigma / 1.5  # finer lattices change the field by less than 1 %
    half = int(np.ceil(_HALF_WIDTH / step))
    lattice = step * np.arange(-half, half + 1)
    noise = rng.standard_normal((len(mirror), *[len(lattice)] * 3), dtype=np.float32)
    if symmetric:
        other = rng.standard_normal(noise.shape, dtype=np.float32)
        sign = np.asarray(mirror, np.float32)[:, None, None, None]
        noise = np.sqrt(symmetric / 2) * (noise + sign * noise[:, ::-1]) + np.sqrt(1 - symmetric) * other
    centre = (0.0, *BRAIN_CENTRE[1:])
    for axis in range(3):
        noise = _smooth_axis(noise, lattice + centre[axis], axes[axis], sigma, axis + 1)
    return noise


def _smooth_axis(noise: np.ndarray, source: np.ndarray, target: np.ndarray, sigma: float, axis: int) -> np.ndarray:
    distance = (np.asarray(target)[:, None] - source[None]) / sigma
    weights = np.where(np.abs(distance) < 3.5, np.exp(-0.5 * distance**2), 0)
    norm = np.sqrt((weights**2).sum(1, keepdims=True))
    weights = sparse.csr_array((weights / np.maximum(norm, 1e-6)).astype(np.float32))
    moved = np.moveaxis(noise, axis, 0)
    result = weights @ np.ascontiguousarray(moved).reshape(len(source), -1)
    return np.moveaxis(result.reshape(len(target), *moved.shape[1:]), 0, axis)


def grid_axes(affine: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
    """Return the positions in mm along each axis of a grid without rotation."""
    return [affine[i, 3] + affine[i, i] * np.arange(shape[i]) for i in range(3)]
