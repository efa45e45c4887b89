"""Measures of how well one structure was found: overlap, surface distances in millimetres, volumes in millilitres.

Conventions where a mask is empty:

- *missed*: the reference has the structure, the prediction does not. Dice and Jaccard are 0, both distances are the
  diagonal of the image (the worst possible value), and `missed` is 1. It counts in every mean.
- *spurious*: the prediction has it, the reference does not. Dice, Jaccard and distances are those of a missed
  structure; `missed` is 0, and the reference volume of 0 tells the two apart.
- *absent*: neither has it. There is nothing to find: all measures but the volumes are nan, and no mean counts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from monai.metrics import get_mask_edges, get_surface_distance


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances in mm from each surface voxel of the prediction to the reference's surface, and vice versa.

    The surface of a mask is what an erosion with the 6-neighbourhood removes. Edges and distances are MONAI's (a
    KD-tree on the common bounding box): all 13 structures of an 80x96x80 label map take 0.4 s on one core. One call
    serves both distances below, where MONAI's two metrics would each compute all of it.

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
    """Return the greater of the two directed 95th percentiles, as `monai.metrics.compute_hausdorff_distance` does."""
    return float(max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95)))


def average_symmetric_surface_distance(to_reference: np.ndarray, to_prediction: np.ndarray) -> float:
    """Return the mean over the surface voxels of both masks together, as MONAI's `symmetric=True` does."""
    total = to_reference.sum(dtype=np.float64) + to_prediction.sum(dtype=np.float64)
    return float(total / (to_reference.size + to_prediction.size))


def structure_metrics(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Measure one structure in one case; the conventions for empty masks are at the top of this file.

    Args:
        prediction: boolean mask [D, H, W].
        reference: boolean mask [D, H, W], of the same shape.
        spacing: size of a voxel in mm along each axis.

    Returns:
        A row with the keys `dice` (2|P&R| / (|P| + |R|)), `jaccard` (|P&R| / |P or R|), `avd_ml` (absolute volume
        difference in mL), `avd_percent` (the same in % of the reference, nan where that is empty), `hd95_mm`, `asd_mm`,
        `volume_ml`, `reference_ml` and `missed` (0 or 1).

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"structure_metrics() got prediction {prediction.shape} and reference {reference.shape}")
    found, expected = int(prediction.sum()), int(reference.sum())
    both = int((prediction & reference).sum())
    millilitres = math.prod(spacing) / 1000.0
    row = {
        "dice": 2 * both / (found + expected) if found + expected else math.nan,
        "jaccard": both / (found + expected - both) if found + expected else math.nan,
        "avd_ml": abs(found - expected) * millilitres if found + expected else math.nan,
        "avd_percent": 100 * abs(found - expected) / expected if expected else math.nan,
        "hd95_mm": math.nan,
        "asd_mm": math.nan,
        "volume_ml": found * millilitres,
        "reference_ml": expected * millilitres,
        "missed": int(expected > 0 and found == 0),
    }
    if found and expected:
        distances = surface_distances(prediction, reference, spacing)
        row["hd95_mm"], row["asd_mm"] = hd95(*distances), average_symmetric_surface_distance(*distances)
    elif found or expected:
        diagonal = math.hypot(*(n * s for n, s in zip(prediction.shape, spacing, strict=True)))
        row["hd95_mm"] = row["asd_mm"] = diagonal
    return row
