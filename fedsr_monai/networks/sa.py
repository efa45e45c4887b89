"""Site-aggregated (SA) features: one small vector per head and scale, which travels between sites besides the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

HEADS = ("registration", "segmentation")
# What is pooled from f_d: its mean after instance normalisation, or mean and log standard deviation of the convolution's output
# before it.
STATISTICS = ("normalised", "convolution")
# Variance over scans before any scan has been seen: a standard deviation of 0.05, about that of the statistics at random weights.
INITIAL_VARIANCE = 0.05**2


def channel_statistics(output: torch.Tensor) -> torch.Tensor:
    """Return the mean and the log standard deviation of each channel of a convolution's output [B, C, D, H, W], as
    float32 [B, 2 C].
    """
    variance, mean = torch.var_mean(output.float(), dim=[2, 3, 4], correction=0)
    return torch.cat([mean, 0.5 * torch.log(variance + 1e-6)], dim=1)


def whitened(statistics: torch.Tensor, sa: torch.Tensor, limit: float = 5.0) -> torch.Tensor:
    """Return the deviation of statistics [B, 2 C] from an SA tensor [2, 2 C], in standard deviations over scans.

    It is clipped to +- `limit`, because a larger deviation carries no further information.
    """
    deviation = (statistics - sa[0]) / (sa[1].clamp(min=0.0) + 1e-6).sqrt()
    return deviation.clamp(-limit, limit)


def profile(sa: torch.Tensor) -> torch.Tensor:
    """Return the SA vector itself: a tensor [C] as it is, or the mean (first row) of a tensor [2, 2 C]."""
    return sa if sa.dim() == 1 else sa[0]


class SAVectors(nn.Module):
    """The SA vectors of one head: buffers "0", "1", "2" for the scales f1, f2, f3 (1/4, 1/8, 1/16 of the grid).

    With the statistics "normalised" each is [C], the pooled features. With "convolution" it is [2, 2 C]: the mean of the
    statistics over scans (the vector), and their variance over scans (by which they are whitened).
    """

    def __init__(self, lengths: Sequence[int], statistics: str = "normalised") -> None:
        super().__init__()
        for scale, length in enumerate(lengths):
            shape = (length,) if statistics == "normalised" else (2, 2 * length)
            self.register_buffer(str(scale), torch.zeros(shape))

    def __getitem__(self, scale: int) -> torch.Tensor:
        return self.get_buffer(str(scale))

    @torch.jit.export
    def vectors(self) -> list[torch.Tensor]:
        """Return the tensors of f1, f2, f3."""
        return [getattr(self, "0"), getattr(self, "1"), getattr(self, "2")]  # noqa: B009 (TorchScript has no indexing of buffers)


class SARepresentation(nn.Module):
    """The SA vectors of both heads: state-dict keys `registration.<scale>` and `segmentation.<scale>`, float32.

    They are buffers, which no optimiser touches. They are moved by `update` (eq. 7) during local training, and by the
    server's ascent.
    """

    def __init__(self, lengths: Sequence[int], statistics: str = "normalised") -> None:
        super().__init__()
        self.registration = SAVectors(lengths, statistics)
        self.segmentation = SAVectors(lengths, statistics)

    @torch.no_grad()
    def update(self, head: str, pooled: Sequence[torch.Tensor], alpha: float) -> None:
        """Move the vectors of a head towards pooled features, outside autograd: eq. 7, f <- (1 - alpha) f + alpha *
        pooled. The variance, if there is one, moves in the same way towards the squared deviation from f.

        Args:
            head: "registration" or "segmentation".
            pooled: pooled f_d of the scales f1, f2, f3, [B, C] or [B, 2 C] each; averaged over the batch.
            alpha: the paper's smoothing coefficient; 1 sets the vector (initialisation from the labelled atlas).
        """
        vectors = getattr(self, head)
        for scale, feature in enumerate(pooled):
            vector, feature = vectors[scale], feature.detach().float()
            if vector.ndim == 2:
                if alpha == 1:  # one image has no variance over scans
                    vector[1].fill_(INITIAL_VARIANCE)
                else:
                    vector[1].lerp_((feature - vector[0]).square().mean(dim=0), alpha)
                vector = vector[0]
            vector.lerp_(feature.mean(dim=0), alpha)
