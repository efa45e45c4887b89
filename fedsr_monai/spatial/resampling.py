"""Resampling between two voxel grids in space: any spacing, orientation and obliquity. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

SLAB = 1 << 20  # voxels sampled at a time: the coordinates and 14 channels of so many take 70 MB


def voxel_map(affine: np.ndarray, grid_affine: np.ndarray) -> np.ndarray:
    """Return the matrix [4, 4] from voxel indices of a grid to those of a volume, from both affines."""
    return np.linalg.inv(np.asarray(affine, dtype=float)) @ np.asarray(grid_affine, dtype=float)


def is_identity(matrix: np.ndarray, shape: Sequence[int], grid_shape: Sequence[int]) -> bool:
    """Return whether two grids are the same to a thousandth of a voxel anywhere in the volume."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], dtype=float)
    return tuple(shape) == tuple(grid_shape) and bool(np.abs(corners @ matrix.T - corners).max() < 1e-3)


def low_pass(volume: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Smooth a volume [D, H, W] that is going to be sampled at `matrix`, against aliasing.

    Along each axis a voxel of the grid spans r voxels of the volume; sigma is 0.425 sqrt(r^2 - 1) of them (full width
    at half maximum: the voxel). That is the 0.425 r of the atlas for large r, and nothing where the grid is not
    coarser.
    """
    ratio = np.linalg.norm(matrix[:3, :3], axis=1)
    sigma = 0.425 * np.sqrt(np.maximum(ratio**2 - 1, 0))
    if (sigma < 0.05).all():
        return volume
    return ndimage.gaussian_filter(volume, sigma, truncate=3, mode="constant")


def sample(
    volume: torch.Tensor,
    matrix: np.ndarray,
    shape: Sequence[int],
    finish: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    padding_mode: str = "zeros",
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Interpolate a volume [C, D, H, W] linearly at `matrix` times the indices of a grid of `shape`; [C', *shape].

    `finish` is applied to slabs [C, d, h, w] of the result as they come, so that many channels at a fine grid (14 times
    a scan of 1 mm: a gigabyte) need never exist at once.

    Args:
        volume: float tensor.
        matrix: from `voxel_map`.
        shape: of the result.
        finish: from sampled values to what is kept.
        padding_mode: outside the volume, "zeros" or "border".
        shift: displacement [3, *shape], added to the positions in voxels of the volume.
    """
    m = torch.as_tensor(matrix, dtype=torch.float32, device=volume.device)
    steps = [torch.arange(n, dtype=torch.float32, device=volume.device) for n in shape]
    depth = max(1, SLAB // (shape[1] * shape[2]))
    slabs = []
    for start in range(0, shape[0], depth):
        part = slice(start, start + depth)
        i, j, k = torch.meshgrid(steps[0][part], steps[1], steps[2], indexing="ij")
        positions = [
            m[a, 0] * i + m[a, 1] * j + m[a, 2] * k + m[a, 3] + (0 if shift is None else shift[a, part])
            for a in range(3)
        ]
        # grid_sample's coordinates run from -1 to 1 over the voxel centres, last axis first
        points = [positions[a] * (2 / max(volume.shape[a + 1] - 1, 1)) - 1 for a in (2, 1, 0)]
        values = F.grid_sample(
            volume[None], torch.stack(points, dim=-1)[None], padding_mode=padding_mode, align_corners=True
        )
        slabs.append(finish(values[0]))
    return torch.cat(slabs, dim=1)


def resample_image(
    volume: torch.Tensor, matrix: np.ndarray, shape: Sequence[int], resolution: np.ndarray | None = None
) -> torch.Tensor:
    """Resample a volume [C, D, H, W] to another grid: low-passed where that is coarser, linear, 0 outside; float32.

    Args:
        volume: any type.
        matrix: from `voxel_map`, grid to volume.
        shape: of the grid.
        resolution: like `matrix`, of the grid whose voxels set the low-pass; by default the grid itself.
    """
    volume = volume.float()
    if resolution is None and is_identity(matrix, volume.shape[1:], shape):
        return volume
    resolution = matrix if resolution is None else resolution
    smooth = np.stack([low_pass(channel, resolution) for channel in volume.cpu().numpy()])
    return sample(torch.from_numpy(smooth).to(volume.device), matrix, shape)


def nearest_labels(label: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the label [D, H, W] that is nearest to each voxel of a finer grid; arguments as of `resample_labels`."""
    return ndimage.affine_transform(label, matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), order=0)


def resample_labels(label: torch.Tensor, matrix: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """Resample a label map [1, D, H, W] to another grid.

    The result is the label whose one-hot map, resampled as an image, is the largest.

    The nearest voxel's label, the usual way, roughens every border by half a voxel.
    """
    if is_identity(matrix, label.shape[1:], shape):
        return label
    best = torch.full((1, *shape), 0.0, device=label.device)
    result = torch.zeros((1, *shape), dtype=label.dtype, device=label.device)
    outside = 1 - resample_image(torch.ones_like(label), matrix, shape)
    for value in torch.unique(label).tolist():
        fraction = resample_image((label == value), matrix, shape) + (outside if value == 0 else 0)
        result[fraction > best] = value
        best = torch.maximum(best, fraction)
    return result
