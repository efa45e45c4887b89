"""Site-aggregated (SA) features: one small vector per head and scale, the second thing that travels between sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

HEADS = ("registration", "segmentation")


class SAVectors(nn.Module):
    """The SA vectors of one head: buffers "0", "1", "2" for the scales f1, f2, f3 (1/4, 1/8, 1/16 of the grid)."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        for scale, length in enumerate(lengths):
            self.register_buffer(str(scale), torch.zeros(length))

    def __getitem__(self, scale: int) -> torch.Tensor:
        return self.get_buffer(str(scale))

    @torch.jit.export
    def vectors(self) -> list[torch.Tensor]:
        """Return the vectors of f1, f2, f3, [C] each."""
        return [getattr(self, "0"), getattr(self, "1"), getattr(self, "2")]  # noqa: B009 (TorchScript has no indexing of buffers)


class SARepresentation(nn.Module):
    """The SA vectors of both heads: state-dict keys `registration.<scale>` and `segmentation.<scale>`, float32 [C]
    each.

    They are buffers: no optimiser touches them. They move by `update` (eq. 7) during local training and by the server's
    ascent.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.registration = SAVectors(lengths)
        self.segmentation = SAVectors(lengths)

    @torch.no_grad()
    def update(self, head: str, pooled: Sequence[torch.Tensor], alpha: float) -> None:
        """Move the vectors of a head towards pooled features, outside autograd: eq. 7, f <- (1 - alpha) f + alpha *
        pooled.

        Args:
            head: "registration" or "segmentation".
            pooled: globally pooled f_d of the scales f1, f2, f3, [B, C] each; averaged over the batch.
            alpha: the paper's smoothing coefficient; 1 sets the vector (initialisation from the labelled atlas).
        """
        vectors = getattr(self, head)
        for scale, feature in enumerate(pooled):
            vectors[scale].lerp_(feature.detach().float().mean(dim=0), alpha)
