"""Label protocols: one anatomy in the borders of two schools. A simulation of their difference, not their rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

CORTEX = 3
SULCUS = 1.5  # mm: fluid this near to the cortex is counted as cortex
# Fraction of FreeSurfer's volume that is kept, and who gets the rest, by structure: putamen and amygdala.
SMALLER = {8: (0.8, (2,)), 12: (0.58, (2, 3, 11))}
_SMOOTH = 1.5  # mm


def freesurfer(regions: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the regions as they are: the maps are FreeSurfer's."""
    return regions


def neuromorphometrics_like(regions: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the regions as a protocol like that of Neuromorphometrics would draw them.

    Three differences, each by a fixed rule (docs/simulate.md says where its size comes from): the cortex takes in the
    fluid of narrow sulci; the putamen loses its rim to the white matter; the amygdala loses its rim to what lies next
    to it (hippocampus, cortex, white matter).

    Args:
        regions: uint8 [D, H, W], fluid is 0.
        mask: bool [D, H, W], the brain.
        spacing: mm.
    """
    result = regions.copy()
    near = ndimage.distance_transform_edt(regions != CORTEX, spacing) <= SULCUS
    result[near & mask & (regions == 0)] = CORTEX
    for structure, (fraction, heirs) in SMALLER.items():
        inside = regions == structure
        if not inside.any():
            continue
        # how deep inside a voxel is, without the ties of a distance in voxels
        depth = ndimage.gaussian_filter(inside.astype(np.float32), _SMOOTH / np.asarray(spacing))
        lost = inside & (depth < np.quantile(depth[inside], 1 - fraction))
        others = ndimage.distance_transform_edt(
            ~np.isin(regions, heirs), spacing, return_distances=False, return_indices=True
        )
        result[lost] = regions[tuple(axis[lost] for axis in others)]
    return result


PROTOCOLS = {"freesurfer": freesurfer, "neuromorphometrics-like": neuromorphometrics_like}
