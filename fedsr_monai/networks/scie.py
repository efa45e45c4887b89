"""Site-common information enhancer (Section II-C): a site-aggregated (SA) vector guides the features f_d of its scale.

The paper names the block and its inputs, but does not specify its interior. `DESIGNS` holds several designs with one
interface; `docs/method.md` reports what they were measured to do.
"""

from __future__ import annotations

import torch
from torch import nn

from fedsr_monai.networks.sa import profile, whitened


class SCIE(nn.Module):
    """`gate`: guide f_d by channel and by position.

    By channel: a gate and a shift from an MLP on [pooled f_d, SA vector]. By position: an attention map, which is the
    similarity of each voxel's projected feature to the projected SA vector, weights a learned part of every channel. The
    block is residual, and its last layers are zero at initialisation, so that it begins as exactly the identity and
    learns how much guidance to take.

    Args:
        channels: channels of f_d.
        length: length of the SA vector; by default one number per channel.
        projection: dimension of the common space in which similarity is measured.
    """

    def __init__(self, channels: int, length: int | None = None, projection: int = 16) -> None:
        super().__init__()
        length = channels if length is None else length
        self.channel_mlp = nn.Sequential(nn.Linear(2 * length, channels), nn.SiLU(), nn.Linear(channels, 2 * channels))
        nn.init.zeros_(self.channel_mlp[-1].weight)
        nn.init.zeros_(self.channel_mlp[-1].bias)
        self.query = nn.Conv3d(channels, projection, kernel_size=1)
        self.key = nn.Linear(length, projection)
        self.place_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, features: torch.Tensor, sa: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        """Return enhanced features [B, C, D, H, W].

        Args:
            features: [B, C, D, H, W].
            sa: SA vector [C], or mean and variance over scans [2, 2 C].
            statistics: statistics of the convolution's output, [B, 2 C], if the SA tensor is of this kind; None uses the
                mean of `features`.
        """
        pooled = features.mean(dim=(2, 3, 4)) if statistics is None else whitened(statistics, sa)
        vector = profile(sa).to(pooled.dtype)
        gate, shift = self.channel_mlp(torch.cat([pooled, vector.expand_as(pooled)], dim=1)).chunk(2, dim=1)
        key = self.key(vector) / self.key.out_features**0.5
        attention = torch.sigmoid(torch.einsum("bkdhw,k->bdhw", self.query(features), key))[:, None]
        scale = 1 + gate[:, :, None, None, None] + attention * self.place_scale[:, None, None, None].to(attention.dtype)
        return features * scale + shift[:, :, None, None, None]


class Normalise(nn.Module):
    """`normalise`: replace the statistics of the scan by those common to all sites.

    This is adaptive instance normalisation (Huang and Belongie, 2017) with the SA vector as the style. It takes the place
    of the block's instance normalisation, and is followed by a learned affine map per channel.

    Args:
        channels: channels of f_d.
        length: length of the SA vector, which holds mean and log standard deviation of each channel.
    """

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, features: torch.Tensor, sa: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        """Return features [B, C, D, H, W] with site-common statistics, from a convolution's output; see `SCIE`."""
        assert statistics is not None
        mean, log_spread = statistics.chunk(2, dim=1)
        common_mean, common_log_spread = sa[0].chunk(2)
        scale = torch.exp(common_log_spread - log_spread)
        shift = (common_mean - mean * scale) * self.gain + self.shift
        scale = scale * self.gain
        return torch.addcmul(
            shift[:, :, None, None, None].to(features.dtype),
            features,
            scale[:, :, None, None, None].to(features.dtype),
        )


class FiLMDifference(nn.Module):
    """`film_difference`: a gain and a shift per channel, computed from how the scan differs from what is common to the
    sites.

    The difference is whitened, so that it is of order one in every channel. It is exactly what instance normalisation
    removes. At initialisation the block is the identity.

    Args:
        channels: channels of f_d.
        length: length of the SA vector, which holds mean and log standard deviation of each channel.
    """

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(length, channels), nn.SiLU(), nn.Linear(channels, 2 * channels))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, features: torch.Tensor, sa: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        """Return enhanced features [B, C, D, H, W]; see `SCIE`."""
        assert statistics is not None
        gain, shift = self.mlp(whitened(statistics, sa)).chunk(2, dim=1)
        return features * (1 + gain[:, :, None, None, None]) + shift[:, :, None, None, None]


class Attention(nn.Module):
    """`attention`: every voxel attends to a few tokens made from the scan's profile and the SA vector.

    The result is added with a weight per channel that is zero at initialisation.

    Args:
        channels: channels of f_d.
        length: length of the SA vector.
        tokens: number of tokens.
        projection: length of queries and keys.
    """

    def __init__(self, channels: int, length: int, tokens: int = 4, projection: int = 16) -> None:
        super().__init__()
        self.query = nn.Conv3d(channels, projection, kernel_size=1)
        self.keys = nn.Linear(2 * length, tokens * projection)
        self.values = nn.Linear(2 * length, tokens * channels)
        self.scale = nn.Parameter(torch.zeros(channels))
        self.tokens = tokens

    def forward(self, features: torch.Tensor, sa: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        """Return enhanced features [B, C, D, H, W]; see `SCIE`."""
        own = features.mean(dim=(2, 3, 4)) if statistics is None else whitened(statistics, sa)
        both = torch.cat([own, profile(sa).to(own.dtype).expand_as(own)], dim=1)
        keys = self.keys(both).unflatten(1, [self.tokens, -1])
        values = self.values(both).unflatten(1, [self.tokens, -1])
        scores = torch.einsum("bpdhw,btp->btdhw", self.query(features), keys) / keys.shape[2] ** 0.5
        read = torch.einsum("btdhw,btc->bcdhw", scores.softmax(dim=1).to(values.dtype), values)
        return features + self.scale[:, None, None, None].to(read.dtype) * read


DESIGNS: dict[str, type[nn.Module]] = {
    "gate": SCIE,
    "normalise": Normalise,
    "film_difference": FiLMDifference,
    "attention": Attention,
}
OF_CONVOLUTION = ("normalise", "film_difference")  # designs that read statistics from before the normalisation
