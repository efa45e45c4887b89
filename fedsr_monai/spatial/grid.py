"""The voxel grid that scans are resampled to and networks work on: that of a site's atlas, or a bundle's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis of a volume (RAS+) at right angles to each plane
# Along the longest axis: the network halves a grid four times, and normalisation needs two voxels on the coarsest level.
LEAST_VOXELS = 17


@dataclass(frozen=True)
class Grid:
    """A box of voxels: `affine` [4, 4] takes voxel indices to millimetres, RAS+."""

    affine: np.ndarray
    shape: tuple[int, ...]

    @property
    def spacing(self) -> float:
        """Return the side length in millimetres of a cube with the volume of a voxel."""
        return float(np.abs(np.linalg.det(self.affine[:3, :3])) ** (1 / 3))

    def finer(self, factor: int) -> Grid:
        """Return the grid with `factor` times as many voxels along each axis; every `factor`-th has the centre of one of this grid."""
        if factor == 1:
            return self
        return Grid(finer_affine(self.affine, factor), tuple(factor * size for size in self.shape))


def mask_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box of voxels around a mask that is not empty."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def finer_affine(affine: np.ndarray, factor: int) -> np.ndarray:
    """Return the affine [4, 4] of a grid with voxels `factor` times smaller, the first of which has the same centre."""
    finer = np.array(affine, dtype=float)
    finer[:3, :3] /= factor
    return finer


FINE = 3  # times finer along each axis: no sample lies halfway between two voxels, where their labels would tie


def fine_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a grid with voxels a third the size and the same centres at the corners."""
    return tuple((n - 1) * FINE + 1 for n in shape)


def fine_affine(affine: np.ndarray) -> np.ndarray:
    """Return the affine [4, 4] of the grid of `fine_shape`."""
    return finer_affine(affine, FINE)
