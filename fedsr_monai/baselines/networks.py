"""The networks of the baselines, built from FedSR's encoder and heads unless the architecture is the point of a paper.

All are `FedSRNet`s without SCIE and without label guidance, so that they are saved, measured and exchanged in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import nn

from fedsr_monai.labels import NUM_CLASSES
from fedsr_monai.networks import PRESETS, FedSRNet, Prediction, Registration
from fedsr_monai.networks.decoder import double
from fedsr_monai.networks.encoder import Encoder, conv_block
from fedsr_monai.networks.fedsr_net import crop_to, pad_to_stride
from fedsr_monai.spatial.warping import resize_ddf, warp


class PairNet(FedSRNet):
    """One encoder and two heads that do not use each other's results; it registers any pair of images.

    Args:
        preset, num_classes, passes, integrate: see `FedSRNet`.
    """

    def __init__(self, preset: str = "small", num_classes: int = NUM_CLASSES, **options: Any) -> None:
        super().__init__(preset, num_classes, scie=False, label_guidance=False, **options)

    def initialise_sa(self) -> None:
        """Leave the SA features at zero, because nothing reads them."""

    def registration_features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features for the registration, in five stages."""
        return self.encoder(image)

    def segmentation_logits(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes, D, H, W] of images whose sides are multiples of the encoder's stride."""
        return self.segment(self.encoder(image))[0]

    def register_features(self, fixed: Sequence[torch.Tensor], moving: Sequence[torch.Tensor]) -> Registration:
        """Register an image (moving) to others (fixed), from their features."""
        batch, _, *shape = fixed[1].shape
        unused = fixed[0].new_zeros(batch, self.num_classes, *shape)  # fractions for the label guidance, which is off
        return self.align(fixed, moving, unused, unused)

    def register_pair(self, fixed: torch.Tensor, moving: torch.Tensor) -> Registration:
        """Register an image (moving, [1, 1, D, H, W]) to others (fixed, [B, 1, D, H, W])."""
        return self.register_features(self.registration_features(fixed), self.registration_features(moving))

    def predict(self, image: torch.Tensor, register: bool = True) -> Prediction:
        """Segment scans and register the site's atlas to them; see `FedSRNet.predict`."""
        shape, scan = image.shape[2:], pad_to_stride(image)
        prediction = Prediction(crop_to(self.segmentation_logits(scan), shape))
        if register:
            self._check_registrable(shape)
            found = self.register_pair(scan, pad_to_stride(self.atlas_image))
            prediction.ddf = crop_to(found.full_ddf, shape)
            prediction.warped_image = warp(self.atlas_image.expand_as(image), prediction.ddf)
        return prediction


class SeparateNet(PairNet):
    """Two networks that share nothing: `encoder` with the segmentation head, and `registration` with an encoder of its
    own (`registration.encoder`). It has one encoder more than FedSR.
    """

    def __init__(self, preset: str = "small", num_classes: int = NUM_CLASSES, **options: Any) -> None:
        super().__init__(preset, num_classes, **options)
        self.registration.encoder = Encoder(PRESETS[preset]["widths"])

    def registration_features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of the registration's own encoder."""
        return self.registration.encoder(image)


class AdversarialNet(SeparateNet):
    """`SeparateNet` with a third, small network, `augmentation`, that predicts how much of a transformation to apply at
    each voxel.

    The third network is needed only in training.
    """

    def __init__(self, preset: str = "small", num_classes: int = NUM_CLASSES, **options: Any) -> None:
        super().__init__(preset, num_classes, **options)
        widths = PRESETS[preset]["widths"]
        self.augmentation = UNet(3, 1, 4, channels=widths[:3], strides=(2, 2), norm="instance")

    def masks(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return masks in [0, 1] for a displacement [B, 3, D, H, W] and for a change of intensity [B, 1, D, H, W]."""
        return self.augmentation(image).float().sigmoid().split([3, 1], dim=1)


class GradientHead(nn.Module):
    """Registration decoder of U-ReSNet: differences of the two images' features -> gradients of the field -> the field.

    The head predicts one gradient per component of the deformation, along the component's own axis: a sigmoid scaled to
    (0, 2), in which 1 is the identity. The deformation is the cumulative sum along the axis. A line of voxels keeps its
    order, so that nothing folds along the axes.

    Args:
        widths: channels of the five encoder stages.
        channels: channels of this head at 1/2, 1/4, 1/8, 1/16.
    """

    def __init__(self, widths: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        half, f1, f2, f3 = channels
        self.levels = nn.ModuleList(
            [
                conv_block(widths[4], f3),
                conv_block(f3 + widths[3], f2),
                conv_block(f2 + widths[2], f1),
                conv_block(f1 + widths[1], half),
            ]
        )
        self.velocities = nn.ModuleList([nn.Conv3d(half, 3, kernel_size=3, padding=1)])
        nn.init.normal_(self.velocities[0].weight, std=1e-5)
        nn.init.zeros_(self.velocities[0].bias)

    def forward(self, fixed: Sequence[torch.Tensor], moving: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the displacement [B, 3, D/2, H/2, W/2] in half-resolution voxels, from five stages of features."""
        x = self.levels[0](fixed[4] - moving[4])
        for stage, level in zip((3, 2, 1), self.levels[1:]):
            x = level(torch.cat([double(x), fixed[stage] - moving[stage]], dim=1))
        stretch = 2 * self.velocities[0](x).float().sigmoid() - 1  # gradient of the field minus that of the identity
        return torch.stack([stretch[:, axis].cumsum(dim=axis + 1) for axis in range(3)], dim=1)


class UReSNet(PairNet):
    """One encoder, the segmentation head, and `GradientHead` on the difference between the features of two images."""

    def __init__(self, preset: str = "small", num_classes: int = NUM_CLASSES, **options: Any) -> None:
        super().__init__(preset, num_classes, **options)
        head = GradientHead(PRESETS[preset]["widths"], PRESETS[preset]["channels"])
        self.registration = head  # type: ignore[assignment]

    def register_features(self, fixed: Sequence[torch.Tensor], moving: Sequence[torch.Tensor]) -> Registration:
        """Register an image (moving) to others (fixed), from their features."""
        ddf = self.registration(fixed, moving)
        return Registration(ddf, resize_ddf(ddf, fixed[0].shape[2:]), [])
