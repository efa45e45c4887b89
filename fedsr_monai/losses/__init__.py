"""Losses of eq. 6, 8, 9 and 12, as functions and modules on tensors. They know neither the network nor the training."""

from fedsr_monai.losses.mutual_information import (
    Balanced,
    InfoNCE,
    ParzenMI,
    ScanNCE,
    mutual_information_estimator,
)
from fedsr_monai.losses.registration import local_cross_correlation, smoothness
from fedsr_monai.losses.segmentation import dice_cross_entropy

__all__ = [
    "Balanced",
    "InfoNCE",
    "ParzenMI",
    "ScanNCE",
    "dice_cross_entropy",
    "local_cross_correlation",
    "mutual_information_estimator",
    "smoothness",
]
