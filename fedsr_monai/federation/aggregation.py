"""The server's rule: from the sites' tensors to the next global ones (Algorithm 1 of the paper). Pure functions.

Sums run in float64 over the sites in sorted order, so the result does not depend on who answered first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Tensors = Mapping[str, torch.Tensor]
MutualInformation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def site_weights(images: Mapping[str, int], weighting: str) -> dict[str, float]:
    """Weights that sum to one: by number of images (McMahan et al. 2017), or 1/N as in Algorithm 1 (`uniform`)."""
    if weighting not in ("images", "uniform"):
        raise ValueError(f"weighting: found {weighting!r}, expected 'images' or 'uniform'")
    counts = {site: images[site] if weighting == "images" else 1 for site in sorted(images)}
    total = sum(counts.values())
    return {site: count / total for site, count in counts.items()}


def aggregate_encoder(updates: Mapping[str, Tensors], weights: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """The weighted mean of the sites' tensors, key by key, in their own type.

    Args:
        updates: tensors by site; the same keys and shapes at every site.
        weights: by site, sum 1.
    """
    sites = sorted(updates)
    mean = {}
    for key in sorted(updates[sites[0]]):
        total = sum(weights[site] * torch.as_tensor(updates[site][key]).double() for site in sites)
        mean[key] = total.to(torch.as_tensor(updates[sites[0]][key]).dtype)
    return mean


def aggregate_sa(
    site_vectors: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    previous: torch.Tensor,
    mutual_information: MutualInformation,
    steps: int = 5,
    lr: float = 0.02,
    alpha: float = 0.1,
) -> torch.Tensor:
    """The next global SA vector: argmax_f sum_n w_n Phi(f_n, f) (Algorithm 1), then the moving average of eq. 7.

    The ascent starts from the weighted mean f0 and takes `steps` steps of length `lr` * |f0| along the gradient, so that it means
    the same at every scale of the features. A step that does not raise the sum is halved: the result is never
    worse than the mean. Then f <- (1 - alpha) * previous + alpha * f.

    Args:
        site_vectors: the vector [C] of each site.
        weights: by site, sum 1.
        previous: the last global vector [C].
        mutual_information: Phi(pooled [1, C], sa [C]) -> scalar, differentiable in `sa`.
    """
    sites = sorted(site_vectors)
    vectors = {site: torch.as_tensor(site_vectors[site]).double() for site in sites}
    best = sum(weights[site] * vectors[site] for site in sites)

    def objective(vector: torch.Tensor) -> torch.Tensor:
        return sum(weights[site] * mutual_information(vectors[site][None], vector) for site in sites)

    step = lr * float(best.norm())
    for _ in range(steps):
        vector = best.clone().requires_grad_(True)
        value = objective(vector)
        (gradient,) = torch.autograd.grad(value, vector)
        length = float(gradient.norm())
        if not 0 < length < float("inf"):
            break
        candidate = best + step / length * gradient
        with torch.no_grad():
            better = bool(objective(candidate) > value)
        if better:
            best = candidate
        else:
            step /= 2
    return ((1 - alpha) * previous.double() + alpha * best).to(previous.dtype)


def aggregate(
    updates: Mapping[str, Tensors],
    weights: Mapping[str, float],
    previous: Tensors,
    mutual_information: MutualInformation | None,
) -> dict[str, torch.Tensor]:
    """The next global tensors: the mean, and for `sa.*` the ascent of `aggregate_sa` where a `mutual_information` is given."""
    following = aggregate_encoder(updates, weights)
    if mutual_information is not None:
        for key in following:
            if key.startswith("sa."):
                vectors = {site: update[key] for site, update in updates.items()}
                following[key] = aggregate_sa(vectors, weights, previous[key], mutual_information)
    return following
