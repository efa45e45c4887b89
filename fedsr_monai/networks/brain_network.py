"""The network that finds the brain in a head: a small U-Net on voxels of 3 mm."""

from __future__ import annotations

import numpy as np
import torch
from monai.networks.nets import UNet
from torch.nn import functional as F

from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import sample, voxel_map

SPACING = 3.0  # mm
MULTIPLE = 8  # each side of the network's input is a multiple of this, because it is halved three times
BRIGHTEST = 99.5  # percentile of the intensities that becomes 1
EMPTY = 0.02  # fraction of that percentile; darker voxels count as empty


def brain_network() -> UNet:
    """Return the untrained U-Net, which maps an image [1, 1, D, H, W] from `scaled` to the logits of brain, of the same
    shape.

    Its first layer halves the resolution, so that most of the work is done on voxels of 6 mm. Instance normalisation
    makes it insensitive to the scale of the intensities.
    """
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(16, 32, 64, 64),
        strides=(2, 2, 2),
        num_res_units=2,
        norm=("instance", {"affine": True}),
        act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
    )


def scaled(image: torch.Tensor) -> torch.Tensor:
    """Scale an image's intensities, which must be 0 or above, to [0, 1]; the brightest 0.5 % become 1."""
    return (image / max(float(np.percentile(image.numpy(), BRIGHTEST)), 1e-6)).clamp(0, 1)


def network_input(volume: np.ndarray, affine: np.ndarray) -> tuple[torch.Tensor, Grid]:
    """Convert a scan to the network's input, whatever the size and orientation of its voxels.

    Args:
        volume: the scan [D, H, W], with values of 0 or above.
        affine: affine of the scan.

    Returns:
        The scaled image [1, d, h, w] and its grid, which has voxels of 3 mm along the axes of space and covers all of the scan
        that is not empty.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    pool = [int(min(max(1, SPACING // size), n)) for size, n in zip(sizes, volume.shape)]
    small = F.avg_pool3d(torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None], pool)
    scale = np.diag([*pool, 1.0])
    scale[:3, 3] = (np.array(pool) - 1) / 2
    small_affine = affine @ scale
    bright = np.argwhere(small[0].numpy() > EMPTY * np.percentile(small.numpy(), BRIGHTEST))
    box = (bright.min(0), bright.max(0) + 1) if len(bright) else (np.zeros(3), np.array(small.shape[1:]))
    grid = grid_over(small_affine, *box)
    return scaled(sample(small, voxel_map(small_affine, grid.affine), grid.shape)), grid


def grid_over(affine: np.ndarray, first: np.ndarray, end: np.ndarray) -> Grid:
    """Return a grid of 3 mm voxels along the axes of space that covers the voxels from `first` up to but not including `end`.

    Its sides are multiples of 8 voxels.
    """
    corners = np.array(np.meshgrid(*zip(first, end))).reshape(3, -1).T - 0.5
    points = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = points.min(0), points.max(0)
    voxels = (np.ceil((high - low) / SPACING / MULTIPLE) * MULTIPLE).astype(int)
    own = np.diag([SPACING] * 3 + [1.0])
    own[:3, 3] = (low + high) / 2 - SPACING * (voxels - 1) / 2
    return Grid(own, tuple(int(n) for n in voxels))
