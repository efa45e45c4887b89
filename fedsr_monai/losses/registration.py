"""Registration losses: local cross-correlation (eq. 9) and smoothness (eq. 8). For label overlap (eq. 10) see
`fedsr_monai.engines.objectives`, which uses `monai.losses.DiceLoss`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


def box_mean_plain(volume: torch.Tensor, radius: int) -> torch.Tensor:
    """Average a volume [B, C, D, H, W] over a cubic window of side 2 radius + 1 around each voxel; voxels outside the
    volume do not count.
    """
    single = volume.flatten(0, 1)[:, None]
    kernel = single.new_ones(1, 1, *[2 * radius + 1] * 3)
    voxels = F.conv3d(torch.ones_like(single[:1]), kernel, padding=radius)
    return (F.conv3d(single, kernel, padding=radius) / voxels).view_as(volume)


def local_cross_correlation_plain(
    moving: torch.Tensor, fixed: torch.Tensor, window: int = 9, eps: float = 1e-4
) -> torch.Tensor:
    """Return the negative mean squared local cross-correlation, by the formula: -mean of cov(a, b)^2 / (var(a) var(b)).

    Means, variances and covariance are those of the cubic window around each voxel. Because local means are subtracted,
    the loss does not depend on brightness and stays in [-1, 0] (Cauchy-Schwarz) for any input.

    Args:
        moving, fixed: warped atlas and scan, [B, 1, D, H, W].
        window: side of the cubic window in voxels, odd.
        eps: added to both local variances; flat regions count as uncorrelated.
    """
    radius = window // 2
    mean_a, mean_b = box_mean_plain(moving, radius), box_mean_plain(fixed, radius)
    variance_a = (box_mean_plain(moving * moving, radius) - mean_a * mean_a).clamp_min(0)
    variance_b = (box_mean_plain(fixed * fixed, radius) - mean_b * mean_b).clamp_min(0)
    covariance = box_mean_plain(moving * fixed, radius) - mean_a * mean_b
    return -(covariance * covariance / ((variance_a + eps) * (variance_b + eps))).mean()


def local_cross_correlation(
    moving: torch.Tensor, fixed: torch.Tensor, window: int = 9, eps: float = 1e-4
) -> torch.Tensor:
    """Compute `local_cross_correlation_plain` fast and in float32; this is l_sim of eq. 9.

    `monai.losses.LocalNormalizedCrossCorrelationLoss`, with its 3-D kernels, takes many times as long as the network on a
    CPU, and leaves [-1, 0] for z-scored images.

    Args:
        moving, fixed: warped atlas and scan, [B, 1, D, H, W].
        window: side of the cubic window in voxels, odd.
        eps: added to both local variances; flat regions count as uncorrelated.

    Raises:
        ValueError: an even window, or different shapes.
    """
    if window % 2 == 0:
        raise ValueError(f"local_cross_correlation() 'window' must be odd, got {window}")
    if moving.shape != fixed.shape:
        raise ValueError(
            f"local_cross_correlation() 'moving' has shape {tuple(moving.shape)}, 'fixed' {tuple(fixed.shape)}; "
            "they must match"
        )
    # The middle of the range is subtracted first, so that variances are differences of small numbers.
    a, b = moving.float() - 0.5, fixed.float() - 0.5
    # Two calls, so that what depends only on the fixed image is not differentiated.
    mean_b, mean_bb = _BoxMean.apply(torch.stack([b, b * b]).flatten(0, 1), window // 2).chunk(2)
    mean_a, mean_aa, mean_ab = _BoxMean.apply(torch.stack([a, a * a, a * b]).flatten(0, 1), window // 2).chunk(3)
    variance_a = (mean_aa - mean_a * mean_a).clamp_min(0)
    variance_b = (mean_bb - mean_b * mean_b).clamp_min(0)
    covariance = mean_ab - mean_a * mean_b
    return -(covariance * covariance / ((variance_a + eps) * (variance_b + eps))).clamp(max=1).mean()


def smoothness(ddf: torch.Tensor) -> torch.Tensor:
    """Return the mean squared gradient of a displacement field [B, 3, D, H, W] (eq. 8, with the mean over voxels
    instead of the sum).

    It uses forward differences, because the central differences of `monai.losses.DiffusionLoss` do not penalise a
    checkerboard pattern.
    """
    along_d, along_h, along_w = (ddf.diff(dim=dim).square().mean() for dim in (2, 3, 4))
    return along_d + along_h + along_w


class _BoxMean(torch.autograd.Function):
    """A fast `box_mean_plain`. The sum over a window is its own adjoint, so the gradient is computed by the same sum."""

    @staticmethod
    def forward(ctx: Any, volume: torch.Tensor, radius: int) -> torch.Tensor:
        ctx.radius = radius
        return _box_sum(volume, radius) / _window_sizes(volume.shape, radius, volume.device)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _box_sum(gradient / _window_sizes(gradient.shape, ctx.radius, gradient.device), ctx.radius), None


def _box_sum(volume: torch.Tensor, radius: int) -> torch.Tensor:
    # A window of 2r+1 voxels is summed by doubling (1, 2, 4, ... voxels), which needs only about log2(2r+1) additions per
    # axis. This is exact to rounding, unlike differences of cumulative sums, and far cheaper than a 3-D kernel.
    width = 2 * radius + 1
    for dim in (2, 3, 4):
        pad = [0] * 6
        pad[2 * (4 - dim)] = pad[2 * (4 - dim) + 1] = radius
        part, size = F.pad(volume, pad), volume.shape[dim]
        total: torch.Tensor | None = None
        done, span = 0, 1
        while done < width:
            if width & span:
                piece = part.narrow(dim, done, size)
                total = piece if total is None else total + piece
                done += span
            span *= 2
            if done < width:
                length = part.shape[dim] - span // 2
                part = part.narrow(dim, 0, length) + part.narrow(dim, span // 2, length)
        assert total is not None  # the width is at least 1
        volume = total
    return volume


def _window_sizes(shape: torch.Size, radius: int, device: torch.device) -> torch.Tensor:
    # The number of voxels of each window that are inside the volume, [D, H, W].
    sides = []
    for n in shape[2:]:
        position = torch.arange(n, device=device)
        sides.append((position + radius).clamp(max=n - 1) - (position - radius).clamp(min=0) + 1)
    return sides[0][:, None, None] * sides[1][:, None] * sides[2]
