"""Phi(f_d, f) of eq. 6: mutual information of globally pooled features and the site-aggregated (SA) vector.

All estimators share one call, `estimator(pooled, sa, key, spread) -> scalar` in nats; larger is better. The SA vector
gets a gradient only if it requires one (it does in the server's ascent; local training passes a buffer).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import nn
from torch.nn import functional as F

from fedsr_monai.checks import check_choice


def _to_unit_range(vectors: torch.Tensor) -> torch.Tensor:
    # MONAI's histogram expects [0, 1]. A z-score and a sigmoid are monotone and smooth, so that no channel sits at a
    # bound without a gradient.
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    # The small constant is inside the root, so that constant vectors have a gradient.
    return torch.sigmoid(1.5 * centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt())


class ParzenMI(nn.Module):
    """Parzen-window mutual information with the channels as samples; our choice for eq. 6, which names no estimator.

    It needs no negatives, has no weights of its own, and is defined at batch size 1. It is high if one profile over
    channels predicts the other, which is what SCIE's channel gates read. The histogram is MONAI's
    `GlobalMutualInformationLoss`. `docs/method.md` shows how little this says once pooled features and SA vector have the
    same profile.

    Args:
        num_bins: number of bins of the histogram.
    """

    def __init__(self, num_bins: int = 8) -> None:
        super().__init__()
        self.histogram = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=num_bins)

    def forward(
        self, pooled: torch.Tensor, sa: torch.Tensor, key: str = "", spread: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mean over the batch for pooled features [B, C] and an SA vector [C]; `key` and `spread` are not used."""
        pooled = _to_unit_range(pooled.float())
        return -self.histogram(pooled[:, None], _to_unit_range(sa.float()).expand_as(pooled)[:, None])


class Queued(nn.Module):
    """Keep the latest features by key (head and scale), as the negatives of an estimator across scans.

    The queues are state: they are saved with the site.

    Args:
        queue: number of features that are kept per key.
        temperature: temperature of the softmax over scores.
    """

    def __init__(self, queue: int, temperature: float) -> None:
        super().__init__()
        self.queue = queue
        self.temperature = temperature
        self.queues: dict[str, torch.Tensor] = {}

    def remember(self, key: str, features: torch.Tensor) -> None:
        """Add features [B, C] to the queue of a key; do nothing outside training mode or without a key."""
        if key and self.training:
            earlier = self.queues.get(key)
            latest = features.detach() if earlier is None else torch.cat([earlier, features.detach()])
            self.queues[key] = latest[-self.queue :]

    def get_extra_state(self) -> dict[str, torch.Tensor]:
        """Return the queues for the state dict."""
        return dict(self.queues)

    def set_extra_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the queues from a state dict."""
        self.queues = dict(state)


def contrastive_bound(positive: torch.Tensor, negative: torch.Tensor | None) -> torch.Tensor:
    """Return the InfoNCE bound [B] from the scores of the positives [B] and of the negatives [B, N].

    Without negatives it is the score of the positive.
    """
    if negative is None:
        return positive
    scores = torch.cat([positive[:, None], negative], dim=1)
    return positive - scores.logsumexp(dim=1) + torch.log(torch.tensor(float(scores.shape[1])))


class InfoNCE(Queued):
    """Normalised InfoNCE: tell the pooled feature from a queue of earlier ones by its similarity to the SA vector.

    It is a lower bound of the mutual information, and at most log(queue + 1). Without a key, or with an empty queue (the
    server's ascent), it is the scaled cosine similarity.

    Args:
        queue: number of earlier features that are kept per key.
        temperature: temperature of the softmax over similarities.
    """

    def __init__(self, queue: int = 16, temperature: float = 0.1) -> None:
        super().__init__(queue, temperature)

    def forward(
        self, pooled: torch.Tensor, sa: torch.Tensor, key: str = "", spread: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mean bound over the batch.

        Args:
            pooled: features [B, C].
            sa: SA vector [C].
            key: names the queue ("segmentation.0"); empty for none.
            spread: not used.
        """
        pooled = F.normalize(pooled.float(), dim=-1)
        anchor = F.normalize(sa.float(), dim=-1)
        positive = pooled @ anchor / self.temperature
        earlier = self.queues.get(key) if key else None
        negative = None if earlier is None else (earlier @ anchor / self.temperature).expand(len(pooled), -1)
        self.remember(key, pooled)
        return contrastive_bound(positive, negative).mean()


class ScanNCE(Queued):
    """InfoNCE across scans: tell what is common to all sites, the SA vector, from the profiles of other scans.

    The score of two profiles is minus their mean squared difference in units of the spread over scans. In these units all
    channels count equally, and an offset that all profiles share has no effect (cosine similarities of pooled features
    are 0.99 and more). The scan is the anchor, the SA vector is its positive, and the site's earlier scans are the
    negatives. The bound rises if a scan comes closer to the SA vector than to the other scans of its own site; it is at
    most log(queue + 1). Without a key, or with an empty queue (the server's ascent, whose maximum is then the mean of the
    sites), it is the score alone.

    Args:
        queue: number of earlier profiles that are kept per key.
        temperature: temperature of the softmax over scores.
    """

    def __init__(self, queue: int = 16, temperature: float = 1.0) -> None:
        super().__init__(queue, temperature)

    def forward(
        self, pooled: torch.Tensor, sa: torch.Tensor, key: str = "", spread: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mean bound over the batch.

        Args:
            pooled: profiles [B, C].
            sa: SA vector [C].
            key: names the queue ("segmentation.0"); empty for none.
            spread: standard deviation over scans, [C]; by default that of the queue, or, if the queue is too short, the
                root mean square of `sa` for all channels.
        """
        pooled, sa = pooled.float(), sa.float()
        earlier = self.queues.get(key) if key else None
        if spread is None and earlier is not None and len(earlier) > 1:
            spread = earlier.std(dim=0)
        elif spread is None:
            spread = sa.detach().square().mean().sqrt().expand_as(sa)
        positive = self._score(pooled, sa, spread)
        negative = None if earlier is None else self._score(pooled[:, None], earlier, spread)
        self.remember(key, pooled)
        return contrastive_bound(positive, negative).mean()

    def _score(self, one: torch.Tensor, other: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        return -((one - other) / (spread + 1e-3)).square().mean(dim=-1) / self.temperature


class Balanced(nn.Module):
    """An estimator whose weight is adapted to the size of its gradient, so that it neither dominates the other terms nor
    vanishes.

    The trainer multiplies the weight of the mutual information by `scale`, and reports what it measured to `measured`.
    The factor is state: it is saved with the site.

    Args:
        estimator: estimator of the mutual information.
        fraction: target for the norm of its gradient, as a fraction of the norm of the gradient of all other terms.
        warmup: steps over which the weight rises from 0.
        interval: steps between two measurements; each costs one more backward pass.
    """

    def __init__(self, estimator: nn.Module, fraction: float = 0.05, warmup: int = 0, interval: int = 4) -> None:
        super().__init__()
        self.estimator = estimator
        self.fraction, self.warmup, self.interval = fraction, warmup, interval
        self.factor: torch.Tensor
        self.register_buffer("factor", torch.ones(()))

    def forward(
        self, pooled: torch.Tensor, sa: torch.Tensor, key: str = "", spread: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what the estimator returns."""
        return self.estimator(pooled, sa, key, spread)

    def ramp(self, iteration: int) -> float:
        """Return the fraction of the weight that applies at an iteration (counted from 1)."""
        return min(1.0, iteration / self.warmup) if self.warmup else 1.0

    def scale(self, iteration: int) -> float:
        """Return the factor by which the weight is multiplied at an iteration."""
        return float(self.factor) * self.ramp(iteration)

    def measured(self, fraction: float, iteration: int) -> None:
        """Adapt the factor to a measured fraction, by no more than a hundredfold at once, and within 1e-4 to 1e4."""
        found = fraction / self.ramp(iteration)
        if found > 0 and math.isfinite(found):
            self.factor.mul_(min(100.0, max(0.01, self.fraction / found))).clamp_(1e-4, 1e4)


ESTIMATORS: dict[str, Callable[[], nn.Module]] = {"parzen": ParzenMI, "infonce": InfoNCE, "scans": ScanNCE}


def mutual_information_estimator(name: str, fraction: float | None = None, warmup: int = 0) -> nn.Module:
    """Return an estimator of Phi (for configs).

    Args:
        name: a key of `ESTIMATORS`.
        fraction, warmup: see `Balanced`; without a fraction the weight is not adapted.

    Raises:
        UserError: there is no such estimator.
    """
    check_choice("phi", name, ESTIMATORS)
    estimator = ESTIMATORS[name]()
    return estimator if fraction is None else Balanced(estimator, fraction, warmup)
