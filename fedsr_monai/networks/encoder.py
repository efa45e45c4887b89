"""The shared encoder: the only convolutional weights that travel between sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import nn


def conv_block(in_channels: int, out_channels: int, stride: int = 1, norm: bool = True) -> Convolution:
    """Return a block of 3x3x3 convolution, instance normalisation (unless `norm` is False) and leaky ReLU.

    Instance normalisation keeps no running statistics, so there is nothing site-specific in it to leak or to average
    wrongly.
    """
    return Convolution(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=stride,
        kernel_size=3,
        adn_ordering="NA" if norm else "A",
        norm=("instance", {"affine": True}),
        # Not in place: the normalisation's output is a view, of which autograd would keep a copy.
        act=("leakyrelu", {"negative_slope": 0.1}),
        bias=False,
    )


class Encoder(nn.Module):
    """Siamese 3-D encoder (E of eq. 1): the same weights see the atlas and the scan, as one batch.

    Args:
        widths: channels of the five stages at strides 1, 2, 4, 8 and 16. The paper's multi-scale features f1, f2, f3
            are those of the last three stages (1/4, 1/8 and 1/16 of the grid).

    Raises:
        ValueError: `widths` does not have five stages.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) != 5:
            raise ValueError(f"Encoder() 'widths' needs 5 stages (strides 1, 2, 4, 8, 16), got {len(widths)}")
        stages: list[nn.Module] = [conv_block(1, widths[0])]
        for below, width in zip(widths[:-2], widths[1:-1]):
            stages.append(nn.Sequential(conv_block(below, width, stride=2), conv_block(width, width)))
        stages.append(conv_block(widths[-2], widths[-1], stride=2))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return the features [B, widths[i], D/2^i, H/2^i, W/2^i] of an image [B, 1, D, H, W] whose sides are multiples
        of 16.
        """
        features: list[torch.Tensor] = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return features
