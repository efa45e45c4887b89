"""Measures of how well two images match, and of whether the deformation between them folds."""

from __future__ import annotations

import math

import numpy as np
import torch

from fedsr_monai.spatial.warping import jacobian_determinant


def ncc(first: np.ndarray, second: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the global normalised cross-correlation: Pearson's correlation of the intensities in a mask, in [-1, 1].

    It is one number for the whole brain, not the local (windowed) form that the registration loss uses.

    Args:
        first, second: images of one shape.
        mask: boolean, of the same shape; everything if None. The evaluation uses the brain of the fixed scan (its
            non-zero voxels), so that the voxels compared do not depend on the deformation.

    Returns:
        The correlation; nan where the mask is empty or an image is constant in it.
    """
    if mask is None:
        mask = np.ones(first.shape, dtype=bool)
    a, b = first[mask].astype(np.float64), second[mask].astype(np.float64)
    if not a.size:
        return math.nan
    a -= a.mean()
    b -= b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def folded_percent(ddf: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Return the percentage of the voxels where the deformation folds: Jacobian determinant <= 0.

    Args:
        ddf: displacements in voxels, [3, D, H, W] (or with leading axes of size 1).
        mask: boolean [D, H, W]; only these voxels are counted. The evaluation uses the brain of the fixed scan, because
            the background, where little moves, would make the number look better.
    """
    folded = jacobian_determinant(ddf).reshape(ddf.shape[-3:]) <= 0
    if mask is not None:
        folded = folded[mask.reshape(ddf.shape[-3:])]
    return 100.0 * folded.double().mean().item()
