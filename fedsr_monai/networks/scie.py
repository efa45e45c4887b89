"""Site-common information enhancer (Section II-C): a site-aggregated vector guides a feature map by channel and by
position.
"""

from __future__ import annotations

import torch
from torch import nn


class SCIE(nn.Module):
    """Guide decoder features f_d with the site-aggregated (SA) vector of the same scale.

    By channel: a gate and a shift from an MLP on [globally pooled f_d, SA vector]. By position: an attention map, the
    similarity of each voxel's projected feature to the projected SA vector, that weighs a learned part of every
    channel. The
    block is residual and its last layers are zero at initialisation, when it is exactly the identity: learning decides
        how
    much guidance to take.

    The paper names the block and its inputs but not its inside; this is our choice, see `docs/method.md`.

    Args:
        channels: channels of f_d, and the length of the SA vector.
        projection: length of the common space in which similarity is measured.
    """

    def __init__(self, channels: int, projection: int = 16) -> None:
        super().__init__()
        self.channel_mlp = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, 2 * channels)
        )
        nn.init.zeros_(self.channel_mlp[-1].weight)
        nn.init.zeros_(self.channel_mlp[-1].bias)
        self.query = nn.Conv3d(channels, projection, kernel_size=1)
        self.key = nn.Linear(channels, projection)
        self.place_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, features: torch.Tensor, sa: torch.Tensor) -> torch.Tensor:
        """Return enhanced features [B, C, D, H, W] of features [B, C, D, H, W] and an SA vector [C]."""
        pooled = features.mean(dim=(2, 3, 4))
        sa = sa.to(pooled.dtype)
        gate, shift = self.channel_mlp(torch.cat([pooled, sa.expand_as(pooled)], dim=1)).chunk(2, dim=1)
        key = self.key(sa) / self.key.out_features**0.5
        attention = torch.sigmoid(torch.einsum("bkdhw,k->bdhw", self.query(features), key))[:, None]
        scale = 1 + gate[:, :, None, None, None] + attention * self.place_scale[:, None, None, None].to(attention.dtype)
        return features * scale + shift[:, :, None, None, None]
