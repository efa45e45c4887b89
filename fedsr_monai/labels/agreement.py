"""Agreement of two label maps of one scan, without a reference."""

from __future__ import annotations

import math

import numpy as np

from fedsr_monai.labels.structures import NUM_CLASSES


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean Dice over the structures that at least one of two label maps has.

    The label maps of a scan by segmentation and by registration agree at 0.8 to 0.9 where both are good, and hardly
    where the scan is not what the network was trained on; so this tells the two apart without a reference.

    Args:
        first: label map of any shape.
        second: label map of the same shape.

    Returns:
        A number in [0, 1]; nan where both are empty.
    """
    sizes = [
        np.bincount(labels.ravel(), minlength=NUM_CLASSES)[1:] for labels in (first, second, first[first == second])
    ]
    total = sizes[0] + sizes[1]
    return float((2 * sizes[2][total > 0] / total[total > 0]).mean()) if total.any() else math.nan
