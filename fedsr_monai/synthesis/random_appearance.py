"""Random scanners: the atlas re-imaged with random tissue contrast, texture, resolution, bias field and noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsr_monai.spatial.warping import filter_axes
from fedsr_monai.synthesis.draws import chance, pick, uniform
from fedsr_monai.synthesis.random_deformation import smooth_noise


def tissue_means(image: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean intensity of each label, [num_classes]; label 0 counts only inside the brain (image > 0: fluid)."""
    inside = (image > 0).flatten()
    ids = label.flatten().long()[inside]
    values = image.flatten()[inside]
    total = torch.zeros(num_classes, device=image.device).index_add(0, ids, values)
    return total / torch.bincount(ids, minlength=num_classes).clamp_min(1)


def imaged_regions(image: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return label ids, with `num_classes` for background that is not fluid: brain tissue that has no label of its own.

    In a T1-weighted image, fluid is about as dark as the darkest structure, the ventricles. Background that is brighter than
    halfway between that and the median structure is tissue.
    """
    means = tissue_means(image, label, num_classes)[1:]
    means = means[means > 0]
    ids = label.long()
    if not len(means):
        return ids
    return torch.where((ids == 0) & (image > (means.min() + means.median()) / 2), num_classes, ids)


class RandomAppearance:
    """Draw T1-like images of a labelled atlas: the contrast before the warp (`contrast`), the scanner after it (`scan`).

    All draws come from torch's global generator.

    Args:
        num_classes: number of labels, including the background.
        spacing: voxel size in millimetres.
        mean_sd: standard deviation of each label's mean around that of the atlas (the whole range is 1).
        noise, bias, gamma, blur: ranges of the standard deviation of the noise, of that of the log bias field, of the
            exponent, and of the Gaussian blur's sigma in voxels.
    """

    def __init__(
        self,
        num_classes: int,
        spacing: float,
        mean_sd: float = 0.07,
        noise: tuple[float, float] = (0.005, 0.05),
        bias: tuple[float, float] = (0.0, 0.3),
        gamma: tuple[float, float] = (0.7, 1.3),
        blur: tuple[float, float] = (0.0, 0.7),
    ) -> None:
        self.num_classes, self.spacing, self.mean_sd = num_classes, spacing, mean_sd
        self.noise, self.bias, self.gamma, self.blur = noise, bias, gamma, blur

    def contrast(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Give the atlas [1, 1, D, H, W] new tissue means and a random part of its own texture; the background stays 0."""
        ids = imaged_regions(image, label, self.num_classes)
        means = tissue_means(image, ids, self.num_classes + 1)
        grey = 0.08 * torch.randn((), device=image.device)  # one shift for all grey matter: the sequence's contrast
        drawn = means + self.mean_sd * torch.randn_like(means) + grey * (means < means.max() - 0.1)
        drawn[0] = means[0] * torch.empty((), device=image.device).uniform_(0.4, 1.1)
        texture = (image - means[ids]) * uniform(0.2, 1.1)
        shape = image.shape[2:]
        slow = 0.03 * smooth_noise(shape, 12 / self.spacing, 1, image.device) + 0.02 * torch.randn_like(image)
        return (drawn.clamp(0.02, 1.1)[ids] * (1 + slow) + texture).clamp(0.01, 1.3) * (image > 0)

    def scan(self, image: torch.Tensor) -> torch.Tensor:
        """Image a noiseless brain [1, 1, D, H, W] on a background of 0 with a random scanner; in [0, 1], background 0."""
        brain = image > 0.005
        # Interpolation has blurred the image; real edges are sharper by an unknown amount.
        image = image + uniform(0, 1.2) * (image - _blur(image, 3 * [0.7]))
        sigma = torch.empty(3).uniform_(*self.blur)
        if chance(0.25):
            sigma[pick(3)] = uniform(0.8, 1.3)  # thick slices
        image = _blur(image, sigma.tolist())
        shape, device = image.shape[2:], image.device
        field = smooth_noise(shape, uniform(40, 70) / self.spacing, 1, device)
        image = image.clamp_min(0) ** uniform(*self.gamma)
        image = image * torch.exp(field * uniform(*self.bias))
        level = uniform(*self.noise)
        image = torch.hypot(image + level * torch.randn_like(image), level * torch.randn_like(image))
        if chance(0.5):  # an imperfect skull strip: the mask is moved in or out in patches
            coverage = filter_axes(brain.float(), 3 * [torch.ones(3)])
            brain = coverage > 0.5 + 0.25 * smooth_noise(shape, 16 / self.spacing, 1, device).clamp(-1.5, 1.5)
        image = image * brain
        top = torch.quantile(image[brain][:: max(1, int(brain.sum()) // 20000)], 0.995) if brain.any() else image.max()
        return (image / (top + 1e-6)).clamp(0, 1)


def _blur(image: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    # Five taps hold a Gaussian of up to sigma 1.3 voxels; at 0.05, only the middle tap is left.
    return filter_axes(image, [torch.exp(-0.5 * (torch.arange(-2, 3) / max(sigma, 0.05)) ** 2) for sigma in sigmas])
