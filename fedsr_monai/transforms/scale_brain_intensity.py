"""Intensities in the range that the networks are trained on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform


def brightest(image: torch.Tensor, percentile: float = 99.8) -> torch.Tensor:
    """Return a percentile of the voxels above 0, as a 0-dimensional tensor; 1 if there are none."""
    brain = image[image > 0]
    if not len(brain):
        return image.new_ones(())
    # torch.quantile refuses more than 2^24 values
    return torch.kthvalue(brain.flatten(), max(1, round(percentile / 100 * len(brain)))).values


def scale_brain_intensity(image: torch.Tensor, percentile: float = 99.8) -> torch.Tensor:
    """Scale a skull-stripped scan to [0, 1]: divide by a percentile of its voxels above 0, and clip."""
    return (image / brightest(image, percentile)).clamp(0, 1)


class ScaleBrainIntensityd(MapTransform):
    """Scale scans of a dictionary, see :func:`scale_brain_intensity`."""

    def __init__(self, keys: KeysCollection, percentile: float = 99.8, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.percentile = percentile

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        scaled = {key: scale_brain_intensity(data[key], self.percentile) for key in self.key_iterator(dict(data))}
        return dict(data) | scaled
