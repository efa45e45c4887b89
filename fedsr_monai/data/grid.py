"""The voxel grid that scans are brought to and networks work on: that of a site's atlas, or a bundle's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch

from fedsr_monai.data.atlas import build_atlas, grid_affine
from fedsr_monai.data.site import load_site, site_folders


@dataclass(frozen=True)
class Grid:
    """A box of voxels. `affine` [4, 4] takes voxel indices to millimetres, RAS+."""

    affine: np.ndarray
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> float:
        """Side in millimetres of a cube as large as a voxel."""
        return float(np.abs(np.linalg.det(self.affine[:3, :3])) ** (1 / 3))


def site_grid(dataset_dir: str | os.PathLike | Sequence) -> Grid:
    """The grid of the (first) site's atlas.

    Raises:
        UserError: the folder breaks the contract of a site.
    """
    site = load_site(site_folders(dataset_dir)[0])
    return Grid(nib.load(site.atlas["label"]).affine, site.shape)


def standard_grid(spacing: float | Sequence[float], shape: Sequence[int]) -> Grid:
    """The grid of this spacing (mm) and shape around the brain of the project's atlas, as `simulate_sites` uses it.

    Raises:
        UserError: the grid cannot hold the brain.
    """
    return Grid(grid_affine(spacing, shape), tuple(shape))


def standard_atlas(spacing: float | Sequence[float], shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The project's atlas on `standard_grid`, for scans that come without a site: image and labels [1, D, H, W].

    Raises:
        UserError: the grid cannot hold the brain, or the packages that the atlas is built from are not installed.
    """
    image, label, _ = build_atlas(spacing, shape)
    return torch.from_numpy(image)[None], torch.from_numpy(label)[None]
