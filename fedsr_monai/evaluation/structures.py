"""How well one structure was found: overlap, surface distances in millimetres, volumes in millilitres.

Conventions where a mask is empty:

- *missed*: the reference has the structure, the prediction does not. Dice and Jaccard are 0, both distances are the
  diagonal of the image (the worst that can be), and ``missed`` is 1. It counts in every mean.
- *spurious*: the prediction has it, the reference does not. Dice, Jaccard and distances likewise; ``missed`` is 0, and
  the reference volume of 0 tells it apart.
- *absent*: neither has it. There is nothing to find: all but the volumes are nan, and no mean counts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from monai.metrics import get_mask_edges, get_surface_distance


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of the prediction to the reference's surface, and the other way round.

    The surface of a mask is what an erosion with the 6-neighbourhood removes. MONAI's edges and KD-tree on the common
    bounding box: all 13 structures of an 80x96x80 label map take 0.4 s on one core, which scipy's distance transform
    does not beat by much. One call serves both distances below, where MONAI's two metrics would each do all of it.

    Args:
        prediction: boolean mask [D, H, W], not empty.
        reference: boolean mask [D, H, W], not empty.
        spacing: size of a voxel in mm along each axis.
    """
    edges_prediction, edges_reference = get_mask_edges(prediction, reference)
    return (
        np.asarray(get_surface_distance(edges_prediction, edges_reference, spacing=spacing)),
        np.asarray(get_surface_distance(edges_reference, edges_prediction, spacing=spacing)),
    )


def hd95(to_reference: np.ndarray, to_prediction: np.ndarray) -> float:
    """The greater of the two directed 95th percentiles, as `monai.metrics.compute_hausdorff_distance` has it."""
    return float(max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95)))


def average_symmetric_surface_distance(to_reference: np.ndarray, to_prediction: np.ndarray) -> float:
    """Mean over the surface voxels of both masks together, as MONAI's ``symmetric=True``."""
    return float((to_reference.sum(dtype=np.float64) + to_prediction.sum(dtype=np.float64))
                 / (to_reference.size + to_prediction.size))  # fmt: skip


def structure_metrics(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """All measures of one structure in one case; the conventions for empty masks are at the top of this file.

    Args:
        prediction: boolean mask [D, H, W].
        reference: boolean mask [D, H, W], of the same shape.
        spacing: size of a voxel in mm along each axis.

    Returns:
        ``dice`` 2|P&R| / (|P| + |R|), ``jaccard`` |P&R| / |P|R|, ``avd_ml`` the absolute volume difference in mL and
        ``avd_percent`` the same in % of the reference (nan where that is empty), ``hd95_mm``, ``asd_mm``,
        ``volume_ml`` and ``reference_ml``, ``missed`` 0 or 1.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"structure_metrics() got prediction {prediction.shape} and reference {reference.shape}")
    found, there = int(prediction.sum()), int(reference.sum())
    both = int((prediction & reference).sum())
    millilitres = math.prod(spacing) / 1000.0
    row = {
        "dice": 2 * both / (found + there) if found + there else math.nan,
        "jaccard": both / (found + there - both) if found + there else math.nan,
        "avd_ml": abs(found - there) * millilitres if found + there else math.nan,
        "avd_percent": 100 * abs(found - there) / there if there else math.nan,
        "hd95_mm": math.nan,
        "asd_mm": math.nan,
        "volume_ml": found * millilitres,
        "reference_ml": there * millilitres,
        "missed": int(there > 0 and found == 0),
    }
    if found and there:
        distances = surface_distances(prediction, reference, spacing)
        row["hd95_mm"], row["asd_mm"] = hd95(*distances), average_symmetric_surface_distance(*distances)
    elif found or there:
        diagonal = math.hypot(*(n * s for n, s in zip(prediction.shape, spacing, strict=True)))
        row["hd95_mm"] = row["asd_mm"] = diagonal
    return row
