"""The two SCIE decoders (heads). Both go up the scales f3, f2, f1 with the same block; they differ in their inputs and
outputs.

Each head has a plain forward pass, and a fast one with the same result that uses the weights of convolutions without
calling them. The fast one is taken if nothing depends on these calls, see `may_bypass`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.networks.utils import pixelshuffle
from torch import nn
from torch.nn import functional as F

from fedsr_monai.networks.encoder import conv_block
from fedsr_monai.networks.sa import channel_statistics
from fedsr_monai.networks.scie import DESIGNS
from fedsr_monai.spatial.warping import compose, integrate, resize_ddf, warp

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def may_bypass(*blocks: nn.Module) -> bool:
    """Return whether the convolutions of these blocks may be bypassed, that is, their weights used without
    calling them.

    They may not while the network is traced, compiled or exported, nor if a block or its convolution has hooks, or if the
    convolution is not a plain one (but quantised or parametrised, for example). The plain pass then calls every module.

    Args:
        blocks: convolutions, or blocks with one as `conv`.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    convolutions = [getattr(block, "conv", block) for block in blocks]
    hooked = any(getattr(module, hooks) for module in (*blocks, *convolutions) for hooks in HOOKS)
    return not hooked and all(type(convolution) is nn.Conv3d for convolution in convolutions)


def double(features: torch.Tensor) -> torch.Tensor:
    """Return features on the grid of twice the size, by nearest-neighbour interpolation: the convolution that follows
    smooths them, and trilinear interpolation costs twice as much.
    """
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


class SCIELevel(nn.Module):
    """One scale of a head: [features from below + skip] -> 3x3x3 convolution -> f_d -> SCIE(f_d, SA vector).

    Args:
        in_channels, channels: input and output channels of the convolution.
        scie: a key of `fedsr_monai.networks.scie.DESIGNS`; None leaves SCIE out.
        statistics: what is pooled, one of `fedsr_monai.networks.sa.STATISTICS`.
    """

    def __init__(self, in_channels: int, channels: int, scie: str | None, statistics: str) -> None:
        super().__init__()
        self.replaces_norm = scie == "normalise"
        self.of_convolution = statistics == "convolution"
        self.conv = conv_block(in_channels, channels, norm=not self.replaces_norm)
        length = 2 * channels if self.of_convolution else channels
        self.scie = None if scie is None else DESIGNS[scie](channels, length)

    def forward(
        self, inputs: list[torch.Tensor], sa: torch.Tensor, guided: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return enhanced features [B, C, ...], and the pooled f_d, [B, C] or [B, 2 C], for the mutual information.

        Without `guided`, SCIE is skipped; the design "normalise" then normalises to mean 0 and standard deviation 1.
        """
        x = torch.cat(inputs, dim=1)
        if not self.of_convolution:
            features = self.conv(x)
            pooled = features.mean(dim=(2, 3, 4))
            if self.scie is not None and guided:
                features = self.scie(features, sa)
            return features, pooled
        output = self.conv.conv(x)
        pooled = channel_statistics(output)
        if self.scie is not None and self.replaces_norm:
            common = sa if guided else torch.zeros_like(sa)  # mean 0 and spread 1: instance normalisation
            return self.conv.adn(self.scie(output, common, pooled)), pooled
        features = self.conv.adn(output)
        if self.scie is not None and guided:
            features = self.scie(features, sa, pooled)
        return features, pooled


class SegmentationHead(nn.Module):
    """Decoder D_s of eq. 2: features of the scan -> logits at full resolution.

    Below full resolution it consists of the SCIE levels and one convolution block. The last step distributes the
    half-resolution features over their eight children (sub-pixel convolution) and combines them with the encoder's
    full-resolution features: one convolution gives logits, and a convolution block adds a residual for borders that a
    linear map cannot draw. The residual is zero at initialisation.

    Args:
        widths: channels of the five encoder stages.
        channels: channels of this head at 1/2, 1/4, 1/8, 1/16.
        num_classes: channels of the logits.
        scie, statistics: see `SCIELevel`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        scie: str | None,
        statistics: str = "normalised",
    ) -> None:
        super().__init__()
        half, f1, f2, f3 = channels
        self.levels = nn.ModuleList(
            [
                SCIELevel(f2 + widths[2], f1, scie, statistics),
                SCIELevel(f3 + widths[3], f2, scie, statistics),
                SCIELevel(widths[4], f3, scie, statistics),
            ]
        )
        self.fine = conv_block(f1 + widths[1], half)
        self.spread = nn.Conv3d(half, 8 * widths[0], kernel_size=1)
        self.logits = nn.Conv3d(2 * widths[0], num_classes, kernel_size=3, padding=1)
        self.detail = conv_block(2 * widths[0], 2 * widths[0])
        self.detail_logits = nn.Conv3d(2 * widths[0], num_classes, kernel_size=1, bias=False)
        nn.init.zeros_(self.detail_logits.weight)

    def forward(
        self, features: list[torch.Tensor], sa: list[torch.Tensor], guided: bool = True
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits [B, classes, D, H, W] and the pooled f_d of f1, f2, f3.

        Args:
            features: of the encoder, five stages.
            sa: the segmentation head's SA vectors of f1, f2, f3.
            guided: False leaves SCIE out of this pass.
        """
        x, pooled3 = self.levels[2]([features[4]], sa[2], guided)
        x, pooled2 = self.levels[1]([double(x), features[3]], sa[1], guided)
        x, pooled1 = self.levels[0]([double(x), features[2]], sa[0], guided)
        x = self.fine(torch.cat([double(x), features[1]], dim=1))
        x = pixelshuffle(self.spread(x), spatial_dims=3, scale_factor=2)
        x = torch.cat([x, features[0]], dim=1)
        pooled = [pooled1, pooled2, pooled3]
        if torch.jit.is_scripting():
            return self.full_resolution(x), pooled
        else:
            fast = may_bypass(self.logits, self.detail)
            return (self.full_resolution_fast(x) if fast else self.full_resolution(x)), pooled

    def full_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes, D, H, W] from full-resolution features, by one convolution plus the residual of the
        detail block.
        """
        return self.logits(x) + self.detail_logits(self.detail(x))

    @torch.jit.unused
    def full_resolution_fast(self, x: torch.Tensor) -> torch.Tensor:
        """Compute `full_resolution` with a single convolution in place of the two that read x, which takes a third less
        time on a CPU, forward and backward.
        """
        weight = torch.cat([self.logits.weight, self.detail.conv.weight])
        bias = F.pad(self.logits.bias, (0, self.detail.conv.out_channels))
        both = F.conv3d(x, weight, bias, padding=1)
        logits, detail = both.split([self.logits.out_channels, self.detail.conv.out_channels], dim=1)
        return self.detail_logits(self.detail.adn(detail)).add_(logits)  # in place: saves 34 MB for 80 x 96 x 80 voxels


class RegistrationHead(nn.Module):
    """Decoder D_r of eq. 2: features of scan and atlas -> displacement field at half resolution, coarse to fine.

    A single half-resolution field, predicted from one look at unaligned features, stalls well below classical
    registration. The head is therefore a pyramid: every level sees the scan's features together with the atlas' features
    *warped by the field so far*, predicts a residual velocity field, integrates it and composes it with the field. The
    half-resolution level is applied `passes` times with the same weights. It also sees the scan's predicted labels
    together with the warped atlas labels (`label_guidance`), so that each head uses what the other knows.

    Args:
        widths, channels, scie, statistics: as for `SegmentationHead`.
        num_classes: label channels of the guidance.
        label_guidance: feed predicted and warped labels to the half-resolution level.
        passes: how often the half-resolution level is applied.
        integrate: integrate the residual velocity fields; False takes them as plain displacements, as the paper does.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        scie: str | None,
        label_guidance: bool = True,
        passes: int = 2,
        integrate: bool = True,
        statistics: str = "normalised",
    ) -> None:
        super().__init__()
        half, f1, f2, f3 = channels
        self.levels = nn.ModuleList(
            [
                SCIELevel(f2 + 2 * widths[2], f1, scie, statistics),
                SCIELevel(f3 + 2 * widths[3], f2, scie, statistics),
                SCIELevel(2 * widths[4], f3, scie, statistics),
            ]
        )
        self.fine = conv_block(f1 + 2 * widths[1] + (2 * num_classes if label_guidance else 0), half)
        self.velocities = nn.ModuleList(nn.Conv3d(c, 3, kernel_size=3, padding=1) for c in (half, f1, f2, f3))
        for velocity in self.velocities:
            nn.init.normal_(velocity.weight, std=1e-5)
            nn.init.zeros_(velocity.bias)
        self.label_guidance = label_guidance
        self.passes = passes
        self.integrate = integrate

    @torch.jit.unused
    def forward(
        self,
        fixed: Sequence[torch.Tensor],
        moving: Sequence[torch.Tensor],
        sa: Sequence[torch.Tensor],
        fixed_fractions: torch.Tensor,
        moving_fractions: torch.Tensor,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the displacement [B, 3, D/2, H/2, W/2] in half-resolution voxels, and the pooled f_d of f1, f2, f3.

        Args:
            fixed, moving: encoder features of scan and atlas.
            sa: the registration head's SA vectors of f1, f2, f3.
            fixed_fractions: predicted label fractions of the scan, [B, classes, D/2, H/2, W/2].
            moving_fractions: label fractions of the atlas, same shape.
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
        of_scan = [double(x), fixed[1]]
        guides = [fixed_fractions.to(x.dtype)] if self.label_guidance else []
        fine = (
            self.fine_features_fast(of_scan, guides) if may_bypass(self.fine) else self.fine_features(of_scan, guides)
        )
        for _ in range(self.passes):
            parts = [warp(moving[1], ddf)]
            if self.label_guidance:
                # No gradient flows through the positions at which labels are sampled (as between the iterations of
                # RAFT): the field learns from what it aligns.
                parts.append(warp(moving_fractions, ddf.detach()))
            ddf = self._step(ddf, fine(parts), self.velocities[0])
        return ddf, pooled

    def _step(self, ddf: torch.Tensor | None, features: torch.Tensor, velocity: nn.Module) -> torch.Tensor:
        residual = velocity(features).float()
        if self.integrate:
            residual = integrate(residual)
        return residual if ddf is None else compose(residual, ddf)

    def fine_features(
        self, of_scan: list[torch.Tensor], guides: list[torch.Tensor]
    ) -> Callable[[list[torch.Tensor]], torch.Tensor]:
        """Return a function from the aligned inputs (atlas features, warped label fractions) to the half-resolution
        level's features.

        Args:
            of_scan: features from the level below, and the encoder's features of the scan.
            guides: predicted label fractions of the scan; empty without label guidance.
        """

        def features(aligned: list[torch.Tensor]) -> torch.Tensor:
            atlas, *labels = (part.to(of_scan[0].dtype) for part in aligned)
            return self.fine(torch.cat([*of_scan, atlas, *guides, *labels], dim=1))

        return features

    def fine_features_fast(
        self, of_scan: list[torch.Tensor], guides: list[torch.Tensor]
    ) -> Callable[[list[torch.Tensor]], torch.Tensor]:
        """Compute `fine_features` faster: the scan's part of the input is the same in every pass, and is convolved only
        once.

        This is possible because a convolution is linear: its output is the sum of the outputs for two groups of its input
        channels, each with its part of the weights.
        """
        below, width = (part.shape[1] for part in of_scan)
        weight = self.fine.conv.weight
        labels = (weight.shape[1] - below - 2 * width) // 2
        sizes = [below, width, width, labels, labels]
        w_below, w_scan, w_atlas, w_guides, w_labels = weight.split(sizes, dim=1)
        scan = F.conv3d(torch.cat([*of_scan, *guides], dim=1), torch.cat([w_below, w_scan, w_guides], dim=1), padding=1)
        w_aligned = torch.cat([w_atlas, w_labels], dim=1)

        def features(aligned: list[torch.Tensor]) -> torch.Tensor:
            atlas = F.conv3d(torch.cat(aligned, dim=1).to(of_scan[0].dtype), w_aligned, padding=1)
            return self.fine.adn(scan + atlas)

        return features
