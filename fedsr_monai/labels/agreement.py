"""Agreement of two label maps of one scan, without a reference."""

from __future__ import annotations

import math

import numpy as np

from fedsr_monai.labels.structures import NUM_CLASSES


def structure_dice(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Dice of structures 1 to 13 between two label maps of the same shape; nan for a structure that neither has."""
    sizes = [
        np.bincount(labels.ravel(), minlength=NUM_CLASSES)[1:] for labels in (first, second, first[first == second])
    ]
    total = sizes[0] + sizes[1]
    return np.where(total > 0, 2 * sizes[2] / np.maximum(total, 1), math.nan)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean Dice over the structures that at least one of two label maps has.

    The label maps of a scan by segmentation and by registration agree at a Dice of 0.8 to 0.9 if both are good, and hardly
    agree if the scan is unlike those that the network was trained on. This tells the two cases apart without a reference.

    Args:
        first: label map of any shape.
        second: label map of the same shape.

    Returns:
        A number in [0, 1]; nan if both are empty.
    """
    dice = structure_dice(first, second)
    found = dice[~np.isnan(dice)]
    return float(found.mean()) if found.size else math.nan
