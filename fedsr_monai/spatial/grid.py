"""The voxel grid that scans are brought to and networks work on: that of a site's atlas, or a bundle's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis of a volume (RAS+) that cuts across each plane


@dataclass(frozen=True)
class Grid:
    """A box of voxels: `affine` [4, 4] takes voxel indices to millimetres, RAS+."""

    affine: np.ndarray
    shape: tuple[int, ...]

    @property
    def spacing(self) -> float:
        """Return the side in millimetres of a cube as large as a voxel."""
        return float(np.abs(np.linalg.det(self.affine[:3, :3])) ** (1 / 3))
