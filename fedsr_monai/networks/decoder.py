"""The two SCIE decoders (heads). Both climb the scales f3, f2, f1 by the same block; they differ in what they read and what they emit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.utils import pixelshuffle
from torch import nn
from torch.nn import functional as F

from fedsr_monai.networks.encoder import conv_block
from fedsr_monai.networks.sa import SAVectors
from fedsr_monai.networks.scie import SCIE
from fedsr_monai.spatial.warping import compose, integrate, resize_ddf, warp


def double(features: torch.Tensor) -> torch.Tensor:
    """Features on the grid of twice the size (nearest: the convolution that follows smooths, and trilinear costs twice as much)."""
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


class SCIELevel(nn.Module):
    """One scale of a head: [features from below + skip] -> 3x3x3 convolution -> f_d -> SCIE(f_d, SA vector)."""

    def __init__(self, in_channels: int, channels: int, scie: bool) -> None:
        super().__init__()
        self.conv = conv_block(in_channels, channels)
        self.scie = SCIE(channels) if scie else None

    def forward(self, inputs: Sequence[torch.Tensor], sa: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Enhanced features [B, C, ...] and the globally pooled f_d [B, C] that mutual information is measured on."""
        features = self.conv(torch.cat(list(inputs), dim=1))
        pooled = features.mean(dim=(2, 3, 4))
        return (features if self.scie is None else self.scie(features, sa)), pooled


class SegmentationHead(nn.Module):
    """Decoder D_s of eq. 2: features of the scan -> logits at full resolution.

    Below full resolution it is the SCIE levels and one convolution block; the last step spreads the half-resolution features over
    their eight children (sub-pixel) and mixes them with the encoder's full-resolution features: logits in one convolution, and a
    residual to them through a convolution block for borders that are no linear matter. The residual starts at zero.

    Args:
        widths: channels of the five encoder stages.
        channels: channels of this head at 1/2, 1/4, 1/8, 1/16.
        num_classes: channels of the logits.
        scie: False leaves SCIE out (the ablation of Table IV).
    """

    def __init__(self, widths: Sequence[int], channels: Sequence[int], num_classes: int, scie: bool) -> None:
        super().__init__()
        half, f1, f2, f3 = channels
        self.levels = nn.ModuleList(
            [SCIELevel(f2 + widths[2], f1, scie), SCIELevel(f3 + widths[3], f2, scie), SCIELevel(widths[4], f3, scie)]
        )
        self.fine = conv_block(f1 + widths[1], half)
        self.spread = nn.Conv3d(half, 8 * widths[0], kernel_size=1)
        self.logits = nn.Conv3d(2 * widths[0], num_classes, kernel_size=3, padding=1)
        self.detail = conv_block(2 * widths[0], 2 * widths[0])
        self.detail_logits = nn.Conv3d(2 * widths[0], num_classes, kernel_size=1, bias=False)
        nn.init.zeros_(self.detail_logits.weight)

    def forward(self, features: Sequence[torch.Tensor], sa: SAVectors) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits [B, classes, D, H, W] and the pooled f_d of f1, f2, f3."""
        x, pooled3 = self.levels[2]([features[4]], sa[2])
        x, pooled2 = self.levels[1]([double(x), features[3]], sa[1])
        x, pooled1 = self.levels[0]([double(x), features[2]], sa[0])
        x = self.fine(torch.cat([double(x), features[1]], dim=1))
        x = pixelshuffle(self.spread(x), spatial_dims=3, scale_factor=2)
        logits, detail = self._both(torch.cat([x, features[0]], dim=1))
        return logits + self.detail_logits(self.detail.adn(detail)), [pooled1, pooled2, pooled3]

    def _both(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Both look at the same full-resolution features. One convolution for the two: a CPU takes a third less for them, forth and back.
        weight = torch.cat([self.logits.weight, self.detail.conv.weight])
        bias = F.pad(self.logits.bias, (0, self.detail.conv.out_channels))
        x = F.conv3d(x, weight, bias, padding=1)
        return x.split([self.logits.out_channels, self.detail.conv.out_channels], dim=1)


class RegistrationHead(nn.Module):
    """Decoder D_r of eq. 2: features of scan and atlas -> displacement field at half resolution, coarse to fine.

    One half-resolution field from one look at unaligned features stalls well below classical registration, so the field is a
    pyramid: every level sees the scan's features beside the atlas' features *warped by the field so far*, adds a residual velocity
    field, integrates it and composes. The half-resolution level is applied ``passes`` times with the same weights, and it also sees
    the scan's predicted labels beside the warped atlas labels (``label_guidance``): the two heads share what they know.

    Args:
        widths, channels, scie: as for :class:`SegmentationHead`.
        num_classes: label channels of the guidance.
        label_guidance: feed predicted and warped labels to the half-resolution level.
        passes: how often that level is applied.
        integrate: integrate the residual velocity fields; False takes them as plain displacements, as the paper does.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        scie: bool,
        label_guidance: bool = True,
        passes: int = 2,
        integrate: bool = True,
    ) -> None:
        super().__init__()
        half, f1, f2, f3 = channels
        self.levels = nn.ModuleList(
            [SCIELevel(f2 + 2 * widths[2], f1, scie), SCIELevel(f3 + 2 * widths[3], f2, scie), SCIELevel(2 * widths[4], f3, scie)]
        )
        self.fine = conv_block(f1 + 2 * widths[1] + (2 * num_classes if label_guidance else 0), half)
        self.velocities = nn.ModuleList(nn.Conv3d(c, 3, kernel_size=3, padding=1) for c in (half, f1, f2, f3))
        for velocity in self.velocities:
            nn.init.normal_(velocity.weight, std=1e-5)
            nn.init.zeros_(velocity.bias)
        self.label_guidance = label_guidance
        self.passes = passes
        self.integrate = integrate

    def _step(self, ddf: torch.Tensor | None, features: torch.Tensor, velocity: nn.Module) -> torch.Tensor:
        residual = velocity(features).float()
        if self.integrate:
            residual = integrate(residual)
        if ddf is None:
            return residual
        return compose(residual, ddf)

    def forward(
        self,
        fixed: Sequence[torch.Tensor],
        moving: Sequence[torch.Tensor],
        sa: SAVectors,
        fixed_labels: torch.Tensor,
        moving_labels: torch.Tensor,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Displacement [B, 3, D/2, H/2, W/2] in half-resolution voxels, and the pooled f_d of f1, f2, f3.

        Args:
            fixed, moving: encoder features of scan and atlas.
            sa: the registration head's SA vectors.
            fixed_labels: predicted label probabilities of the scan at half resolution, [B, classes, D/2, H/2, W/2].
            moving_labels: label shares of the atlas at half resolution, same shape.
        """
        x, pooled3 = self.levels[2]([fixed[4], moving[4]], sa[2])
        ddf = self._step(None, x, self.velocities[3])
        pooled = [pooled3]
        for scale in (1, 0):
            ddf = resize_ddf(ddf, fixed[scale + 2].shape[2:])
            aligned = warp(moving[scale + 2], ddf).to(fixed[scale + 2].dtype)
            x, pooled_scale = self.levels[scale]([double(x), fixed[scale + 2], aligned], sa[scale])
            ddf = self._step(ddf, x, self.velocities[scale + 1])
            pooled.insert(0, pooled_scale)
        ddf = resize_ddf(ddf, fixed[1].shape[2:])
        guides = ([fixed_labels.to(x.dtype)], [moving_labels]) if self.label_guidance else ([], [])
        of_scan, of_atlas = self._fine_weights(x.shape[1], fixed[1].shape[1])
        scan = F.conv3d(torch.cat([double(x), fixed[1], *guides[0]], dim=1), of_scan, padding=1)
        for _ in range(self.passes):
            # Where labels are sampled takes no gradient of its own (as between the iterations of RAFT): the field learns by what it aligns.
            aligned = [warp(moving[1], ddf), *(warp(guide, ddf.detach()) for guide in guides[1])]
            atlas = F.conv3d(torch.cat(aligned, dim=1).to(x.dtype), of_atlas, padding=1)
            ddf = self._step(ddf, self.fine.adn(scan + atlas), self.velocities[0])
        return ddf, pooled

    def _fine_weights(self, below: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        # The half-resolution convolution sees [below, scan, atlas] features and [scan's, atlas'] labels. Convolutions are linear, and what is the
        # scan's is the same in every pass: its part of the sum is computed once, by its part of the weights.
        weight = self.fine.conv.weight
        labels = (weight.shape[1] - below - 2 * width) // 2
        below, scan, atlas, scan_labels, atlas_labels = weight.split([below, width, width, labels, labels], dim=1)
        return torch.cat([below, scan, scan_labels], dim=1), torch.cat([atlas, atlas_labels], dim=1)
