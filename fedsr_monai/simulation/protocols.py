"""Label protocols: one anatomy with the borders of two protocols. Their difference is simulated, not their actual rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fedsr_monai.networks.protocols import NEUROMORPHOMETRICS

CORTEX = 3
SULCUS = 1.5  # mm: fluid this near to the cortex is counted as cortex
# Fraction of FreeSurfer's volume that is kept, and the structures that get the rest, for putamen and amygdala.
SMALLER = {8: (0.8, (2,)), 12: (0.58, (2, 3, 11))}
CORTEX_RATIO = 1.3  # cortex volume in Neuromorphometrics' borders relative to that in FreeSurfer's
_SMOOTH = 1.5  # mm


def freesurfer(regions: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the regions unchanged, because the maps are FreeSurfer's."""
    return regions


def neuromorphometrics_like(regions: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the regions as a protocol like that of Neuromorphometrics would draw them.

    There are three differences, each by a fixed rule (docs/simulate.md says where its size comes from): the cortex takes in
    the fluid of narrow sulci; the putamen loses its rim to the white matter; the amygdala loses its rim to its neighbours
    (hippocampus, cortex, white matter).

    Args:
        regions: uint8 [D, H, W], fluid is 0.
        mask: bool [D, H, W], the brain.
        spacing: voxel size in mm.
    """
    result = regions.copy()
    near = ndimage.distance_transform_edt(regions != CORTEX, spacing) <= SULCUS
    result[near & mask & (regions == 0)] = CORTEX
    for structure, (fraction, heirs) in SMALLER.items():
        inside = regions == structure
        if not inside.any():
            continue
        # how deep a voxel lies inside the structure, without the ties of a distance in voxels
        depth = ndimage.gaussian_filter(inside.astype(np.float32), _SMOOTH / np.asarray(spacing))
        lost = inside & (depth < np.quantile(depth[inside], 1 - fraction))
        others = ndimage.distance_transform_edt(
            ~np.isin(regions, heirs), spacing, return_distances=False, return_indices=True
        )
        result[lost] = regions[tuple(axis[lost] for axis in others)]
    return result


def neuromorphometrics(regions: np.ndarray, csf: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the regions unchanged, because those of the project's own anatomy are Neuromorphometrics'."""
    return regions


def freesurfer_like(regions: np.ndarray, csf: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the regions of the project's own anatomy as a protocol like FreeSurfer's would draw them.

    These are the rules of `neuromorphometrics_like` in reverse: the cortex leaves out the fluid of its sulci; putamen and
    amygdala grow into their neighbours.

    Args:
        regions: uint8 [D, H, W], fluid is 0.
        csf: fraction of fluid in the voxels of the cortex, float [D, H, W].
        spacing: voxel size in mm.
    """
    result = regions.copy()
    cortex = regions == CORTEX
    if cortex.any():
        result[cortex & (csf > np.quantile(csf[cortex], 1 / CORTEX_RATIO))] = 0
    for structure, (fraction, givers) in SMALLER.items():
        inside, candidates = regions == structure, np.isin(regions, givers)
        wanted = int(min(np.count_nonzero(inside) * (1 / fraction - 1), np.count_nonzero(candidates)))
        if not wanted:
            continue
        near = ndimage.gaussian_filter(inside.astype(np.float32), _SMOOTH / np.asarray(spacing))
        least = np.partition(near[candidates], -wanted)[-wanted]
        result[candidates & (near >= max(least, 1e-6))] = structure
    return result


PROTOCOLS = {"freesurfer": freesurfer, "neuromorphometrics-like": neuromorphometrics_like}  # for label maps of people
DRAWN_PROTOCOLS = {NEUROMORPHOMETRICS: neuromorphometrics, "freesurfer-like": freesurfer_like}  # for drawn subjects
