"""The project's atlas on a standard grid, for scans that come without a site."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedsr_monai.atlas.build import build_atlas, fine_label, grid_affine, structures_of
from fedsr_monai.atlas.templates import high_resolution_templates
from fedsr_monai.spatial.grid import Grid


def standard_grid(spacing: float | Sequence[float], shape: Sequence[int]) -> Grid:
    """Return the grid of this spacing (mm) and shape around the brain of the project's atlas, as `simulate_sites` uses it.

    Raises:
        UserError: the grid cannot hold the brain.
    """
    return Grid(grid_affine(spacing, shape), tuple(shape))


def standard_atlas(spacing: float | Sequence[float], shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the project's atlas on `standard_grid`: image float32 and labels uint8, both [1, D, H, W].

    Raises:
        UserError: the grid cannot hold the brain, or the packages that the atlas is built from are not installed.
    """
    image, label, _ = build_atlas(spacing, shape)
    return torch.from_numpy(image)[None], torch.from_numpy(label)[None]


def fine_atlas_label(spacing: float | Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Return the labels of `standard_atlas` on voxels a third the size (see `fine_shape`), from the 1 mm templates: uint8 [D, H, W].

    Raises:
        UserError: the packages that the atlas is built from are not installed.
    """
    templates = high_resolution_templates()
    return fine_label(templates.label, templates.mask, templates.affine, spacing, shape)


def native_atlas() -> tuple[torch.Tensor, torch.Tensor, Grid]:
    """Return the project's atlas at its own resolution of 1 mm, in the same space as `standard_atlas`.

    Returns:
        Image float32 and labels uint8, both [1, D, H, W], and their grid.

    Raises:
        UserError: the packages that the atlas is built from are not installed.
    """
    templates = high_resolution_templates()
    label = structures_of(templates.label, templates.mask)
    image = np.clip(templates.t1 / np.percentile(templates.t1[templates.mask], 99.9), 0, 1).astype(np.float32)
    return torch.from_numpy(image)[None], torch.from_numpy(label)[None], Grid(templates.affine, label.shape)
