"""Phi(f_d, f) of eq. 6: mutual information of globally pooled features and the site-aggregated (SA) vector.

Two estimators with one call, `estimator(pooled, sa, key) -> scalar` in nats, larger is better. Neither differentiates
the SA vector unless that asks for a gradient (the server's ascent does; local training passes a buffer).
"""

from __future__ import annotations

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import nn
from torch.nn import functional as F


def _to_unit_range(vectors: torch.Tensor) -> torch.Tensor:
    # MONAI's histogram wants [0, 1]. A z-score and a sigmoid are monotone and smooth: no channel sits at a bound
    # without a gradient.
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    # Inside the root, so that constant vectors have a gradient.
    return torch.sigmoid(1.5 * centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt())


class ParzenMI(nn.Module):
    """Parzen-window mutual information with the channels as samples; our choice for eq. 6, which names no estimator.

    No negatives, no weights of its own, and defined at batch size 1. It is high where one profile over channels
    predicts the other, which is what SCIE's channel gates read. The histogram is MONAI's `GlobalMutualInformationLoss`.
    How little this says once pooled features and SA vector have the same profile is in `docs/method.md`.

    Args:
        num_bins: of the histogram.
    """

    def __init__(self, num_bins: int = 8) -> None:
        super().__init__()
        self.histogram = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=num_bins)

    def forward(self, pooled: torch.Tensor, sa: torch.Tensor, key: str = "") -> torch.Tensor:
        """Return the mean over the batch, of pooled features [B, C] and an SA vector [C]; `key` is not used."""
        pooled = _to_unit_range(pooled.float())
        return -self.histogram(pooled[:, None], _to_unit_range(sa.float()).expand_as(pooled)[:, None])


class InfoNCE(nn.Module):
    """Normalised InfoNCE: tell the pooled feature from a queue of earlier ones by its similarity to the SA vector.

    A lower bound of mutual information capped at log(queue + 1). The queue of each key (head and scale) is state: it is
    saved with the site. Without a key, or with an empty queue (the server's ascent), it is the scaled cosine
    similarity.

    Args:
        queue: earlier features that are kept per key.
        temperature: of the softmax over similarities.
    """

    def __init__(self, queue: int = 16, temperature: float = 0.1) -> None:
        super().__init__()
        self.queue = queue
        self.temperature = temperature
        self.queues: dict[str, torch.Tensor] = {}

    def forward(self, pooled: torch.Tensor, sa: torch.Tensor, key: str = "") -> torch.Tensor:
        """Return the mean bound over the batch.

        Args:
            pooled: features [B, C].
            sa: SA vector [C].
            key: names the queue ("segmentation.0"); empty for none.
        """
        pooled = F.normalize(pooled.float(), dim=-1)
        anchor = F.normalize(sa.float(), dim=-1)
        positive = pooled @ anchor / self.temperature
        earlier = self.queues.get(key)
        if not key or earlier is None:
            bound = positive
        else:
            negative = (earlier @ anchor / self.temperature).expand(len(pooled), -1)
            scores = torch.cat([positive[:, None], negative], dim=1)
            bound = positive - scores.logsumexp(dim=1) + torch.log(torch.tensor(float(scores.shape[1])))
        if key and self.training:
            latest = pooled.detach() if earlier is None else torch.cat([earlier, pooled.detach()])
            self.queues[key] = latest[-self.queue :]
        return bound.mean()

    def get_extra_state(self) -> dict[str, torch.Tensor]:
        """Return the queues for the state dict."""
        return dict(self.queues)

    def set_extra_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the queues from a state dict."""
        self.queues = dict(state)
