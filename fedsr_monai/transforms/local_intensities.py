"""Evidence for labels from a scan's own voxels: a normal distribution per label, whose mean varies over the brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import Evidence, sample, voxel_map
from fedsr_monai.spatial.warping import filter_axes
from fedsr_monai.spatial.warping import sample as look_up
from fedsr_monai.transforms.scale_brain_intensity import brightest

LABELLED = 2.0  # mm, approximate distance between the points that are used: the network resolves no finer detail
LATTICE = 4.0  # mm, approximate distance between the points at which the model is kept
REACH = 6.0  # mm, sigma of the neighbourhood over which a mean is taken
RARE = 1e-3  # fraction of a neighbourhood below which the mean of a label is pulled to its mean in the whole brain
NOISE = 0.03  # least standard deviation, as a fraction of the brain's brightest intensities
WEIGHT = 2.0  # weight of the log likelihood relative to the network's log probabilities, whose borders are smoother
SAMPLED = 3  # the noise is estimated from every so many lines of voxels
NOISY = 0.06  # noise, as a fraction of the brightest intensities, that halves `WEIGHT`, as a voxel then says less


class LocalIntensities:
    """Model the intensities of a scan near each point, given the network's probabilities.

    The network sees a scan at the network's own spacing, and its borders are correspondingly smooth; the scan's voxels hold
    more detail. Around each point, the intensities of each label are described by a normal distribution, whose mean is weighted
    by the probabilities of the label and whose variance is the same for all labels. The means vary over the brain, so that
    neither a bias field nor a structure with two tones does harm. This is one step of expectation maximisation, as in classical
    tissue segmentation (Ashburner and Friston, Unified segmentation, NeuroImage 2005), and assumes no particular contrast. The
    noisier the scan, the less its likelihood counts.

    Args:
        scan: intensities [1, D, H, W], 0 outside the brain.
        affine: affine of the scan.
        probabilities: probabilities of the labels, [K, d, h, w], on another grid.
        grid_affine: affine of that grid.
    """

    def __init__(
        self, scan: torch.Tensor, affine: np.ndarray, probabilities: torch.Tensor, grid_affine: np.ndarray
    ) -> None:
        spacing = Grid(grid_affine, tuple(probabilities.shape[1:])).spacing
        every = max(1, round(LABELLED / spacing))
        pooled = max(1, round(LATTICE / (every * spacing)))
        weight = probabilities[:, ::every, ::every, ::every].float()
        matrix = voxel_map(affine, grid_affine @ np.diag([every, every, every, 1]))
        image = sample(scan.float(), matrix, weight.shape[1:])
        self.scan = scan
        self.top = max(float(brightest(image)), 1e-6)
        image = image / self.top
        self.weight = WEIGHT / (1 + (noise_level(scan[0].float()) / self.top / NOISY) ** 2)
        weight = weight * (image > 0)  # nothing is known about the background that was cut away
        sums = torch.cat([weight, weight * image, weight.sum(dim=0, keepdim=True) * image.square()])
        sums = F.avg_pool3d(sums, pooled, ceil_mode=True)
        sigma = REACH / (every * pooled * spacing)
        reach = min(round(3 * sigma), *(size - 1 for size in sums.shape[1:]))
        sums = filter_axes(sums, 3 * [torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)])
        count, total, square = sums[: len(weight)], sums[len(weight) : -1], sums[-1:]
        everywhere = total.sum(dim=(1, 2, 3)) / count.sum(dim=(1, 2, 3)).clamp(min=1e-6)
        mean = (total + RARE * everywhere[:, None, None, None]) / (count + RARE)
        scatter = square - (mean * (2 * total - mean * count)).sum(dim=0, keepdim=True)
        variance = scatter.clamp(min=0) / count.sum(dim=0, keepdim=True).clamp(min=RARE) + NOISE**2
        self.model = torch.cat([mean, variance])[None]
        # from voxels of the grid to points of the lattice, each of which lies in the middle of the voxels that it pools
        self.first, self.step = every * (pooled - 1) / 2, every * pooled

    def log_likelihood(self, intensity: torch.Tensor, places: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the log likelihood of each label, weighted and up to a constant: [K, ...]; 0 outside the brain.

        Args:
            intensity: intensities of the scan, [...]; 0 outside the brain.
            places: their positions in voxels of the grid of the probabilities; three tensors of the same shape.
        """
        shape = intensity.shape
        lattice = [((place - self.first) / self.step).reshape(1, 1, 1, -1) for place in places]
        values = look_up(self.model, lattice)[0, :, 0, 0]
        flat = intensity.reshape(1, -1)
        difference = values[:-1].sub_(flat / self.top)
        return difference.square_().mul_((flat > 0) * (-self.weight / 2)).div_(values[-1]).reshape(-1, *shape)

    def evidence(self) -> Evidence:
        """Return the evidence that `sample_labels` adds at the voxels of the scan."""
        return lambda places, box, chosen: self.log_likelihood(self.scan[(0, *box)][chosen].float(), places)


def with_intensities(
    logits: torch.Tensor, grid_affine: np.ndarray, scan: torch.Tensor, affine: np.ndarray
) -> torch.Tensor:
    """Return logits [K, d, h, w] plus the log likelihoods of the scan's intensities, interpolated at their voxels.

    Args:
        logits: logits of the network.
        grid_affine: affine of their grid.
        scan: intensities [1, D, H, W].
        affine: affine of the scan.
    """
    shape = logits.shape[1:]
    model = LocalIntensities(scan, affine, logits.float().softmax(dim=0), grid_affine)
    image = sample(scan.float(), voxel_map(affine, grid_affine), shape)[0]
    places = torch.meshgrid(*[torch.arange(n, device=scan.device) for n in shape], indexing="ij")
    return model.log_likelihood(image, places).add_(logits)


def noise_level(image: torch.Tensor) -> float:
    """Return the standard deviation of white noise in a scan [D, H, W], 0 outside the brain, from second differences.

    Their median absolute value (times 1.48, which for a normal distribution gives the standard deviation) is hardly affected by
    borders, and the smallest value of the three axes is affected least. Scans without noise come out at 0.01 to 0.02 of their
    brightest intensities.
    """
    levels = []
    for axis in range(3):
        lines = image[tuple(slice(None) if a == axis else slice(None, None, SAMPLED) for a in range(3))]
        before, at, after = (lines.narrow(axis, start, max(0, lines.shape[axis] - 2)) for start in range(3))
        second = (before - 2 * at + after)[(before > 0) & (at > 0) & (after > 0)].abs()
        levels.append(1.4826 * float(second.median()) / 6**0.5 if len(second) else 0.0)
    return min(levels)
