"""Images of any contrast, drawn from labels alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from fedsr_monai.synthesis.random_appearance import RandomAppearance
from fedsr_monai.synthesis.random_deformation import smooth_noise


class RandomContrast(RandomAppearance):
    """Draw images of a label map with random contrast, as SynthSeg does (Billot et al., Medical Image Analysis 2023).

    Each label gets a Gaussian of intensities whose mean and spread are drawn anew, whatever they are in the atlas. The
    atlas' image is not used. The brain consists of the labelled voxels and of those within two voxels of them; the
    unlabelled ones, which are fluid and remnants in a scan, form one more region. The scanner that follows (`scan`) is that
    of `RandomAppearance`.

    Args:
        num_classes, spacing, options: see `RandomAppearance`.
        mean, spread: ranges of a label's mean and standard deviation (the whole range of intensities is 1).
    """

    def __init__(
        self,
        num_classes: int,
        spacing: float,
        mean: tuple[float, float] = (0.05, 1.0),
        spread: tuple[float, float] = (0.0, 0.1),
        **options: Any,
    ) -> None:
        super().__init__(num_classes, spacing, **options)
        self.mean, self.spread = mean, spread

    def contrast(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Draw an image [1, 1, D, H, W] from labels of the same shape; 0 outside the brain."""
        means = torch.empty(self.num_classes, device=label.device).uniform_(*self.mean)
        spreads = torch.empty(self.num_classes, device=label.device).uniform_(*self.spread)
        ids = label.long()
        # Half of the spread is smooth: tissue is not white noise.
        slow = smooth_noise(label.shape[2:], 8 / self.spacing, 1, label.device)
        noise = (0.5 * slow + 0.75**0.5 * torch.randn_like(slow)) * spreads[ids]
        brain = F.max_pool3d((label > 0).float(), kernel_size=5, stride=1, padding=2)
        return (means[ids] + noise).clamp(0.01, 1.3) * brain
