"""The server's aggregation rules: pure functions that turn the sites' tensors into the next global ones, registered in `RULES`.

`mean` is Algorithm 1 of the paper; the others bound what a minority of hostile sites can do. Sums run in float64 over the sites in
sorted order, so the result does not depend on who answered first. To add a rule, add an entry to `RULES`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
Updates = Mapping[str, Tensors]
Weights = Mapping[str, float]
MutualInformation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

WEIGHTINGS = ("images", "uniform")
TRIMMED = 0.25  # fraction of the sites that the trimmed mean leaves out at each end


def site_weights(
    images: Mapping[str, int], weighting: str = "images", declared: Collection[str] = ()
) -> dict[str, float]:
    """Return the sites' weights, which sum to one.

    They are proportional to the number of images (McMahan et al. 2017), or all 1/N as in Algorithm 1 (`uniform`). A count that was not
    agreed on beforehand is only a claim. It is capped at the median of the other sites' counts, which limits what a site can
    gain by an inflated claim.

    Args:
        images: number of training images by site.
        weighting: `images` or `uniform`.
        declared: the sites whose number was agreed on beforehand; it counts in full.

    Raises:
        ValueError: unknown weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: found {weighting!r}, expected one of {', '.join(WEIGHTINGS)}")
    counts: dict[str, float] = {}
    for site in sorted(images):
        others = [count for other, count in images.items() if other != site]
        claimed = weighting == "images" and site not in declared and bool(others)
        most = statistics.median(others) if claimed else math.inf
        counts[site] = min(images[site], most) if weighting == "images" else 1
    total = sum(counts.values())
    return {site: count / total for site, count in counts.items()}


def weighted_mean(updates: Updates, weights: Weights, sent: Tensors) -> dict[str, torch.Tensor]:
    """Return the weighted mean of the sites' tensors (Algorithm 1), key by key, in float64.

    Args:
        updates: tensors by site; the same keys and shapes at every site.
        weights: by site, sum 1.
        sent: the tensors that the sites started from.
    """
    nothing = torch.zeros((), dtype=torch.double)
    return {
        key: sum((weights[site] * updates[site][key].double() for site in sorted(updates)), nothing)
        for key in sorted(sent)
    }


def coordinate_median(updates: Updates, weights: Weights, sent: Tensors) -> dict[str, torch.Tensor]:
    """Return the coordinate-wise median over the sites (Yin et al. 2018); `weights` is ignored."""
    median = {}
    for key, ordered in _ordered(updates, sent).items():
        count = len(ordered)
        median[key] = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return median


def trimmed_mean(
    updates: Updates, weights: Weights, sent: Tensors, trimmed: float = TRIMMED
) -> dict[str, torch.Tensor]:
    """Return the coordinate-wise mean over the sites, without the largest and smallest values (Yin et al. 2018).

    Args:
        updates, weights, sent: see `weighted_mean`; `weights` is ignored.
        trimmed: fraction of the sites left out at each end, rounded down, but at least one site if there are three or more.
    """
    count = len(updates)
    out = max(int(trimmed * count), 1 if count >= 3 else 0)
    return {key: ordered[out : count - out].mean(0) for key, ordered in _ordered(updates, sent).items()}


def clipped_mean(updates: Updates, weights: Weights, sent: Tensors) -> dict[str, torch.Tensor]:
    """Return `sent` plus the weighted mean of the sites' differences to it, each tensor clipped to its median norm over the sites.

    This is norm clipping (Sun et al. 2019), except that the threshold comes from the updates themselves, and that each tensor is
    clipped on its own, because small tensors matter too.
    """
    sites = sorted(updates)
    clipped = {}
    for key in sorted(sent):
        start = sent[key].double()
        moves = {site: updates[site][key].double() - start for site in sites}
        norms = {site: float(move.norm()) for site, move in moves.items()}
        limit = statistics.median(norms.values())
        scales = {site: min(1.0, limit / norms[site]) if norms[site] > 0 else 1.0 for site in sites}
        clipped[key] = start + sum(weights[site] * scales[site] * moves[site] for site in sites)
    return clipped


def krum_sites(updates: Updates, sent: Tensors) -> list[str]:
    """Return the sites that multi-Krum (Blanchard et al. 2017) keeps: those nearest to their neighbours.

    Of n sites, f = max(1, floor((n - 3) / 2)) are assumed to be hostile. A site's score is the sum of its n - f - 2 (at least
    one) smallest squared distances to other sites. The n - f sites with the lowest scores are kept. With fewer than four
    sites, all are kept.
    """
    sites = sorted(updates)
    count = len(sites)
    if count < 4:
        return sites
    hostile = max(1, (count - 3) // 2)
    squared = torch.zeros(count, count, dtype=torch.float64)
    for key in sorted(sent):
        stacked = torch.stack([updates[site][key].double().flatten() for site in sites])
        squared += torch.cdist(stacked, stacked, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = squared.sort(dim=1).values[:, 1 : 1 + max(1, count - hostile - 2)]  # the first is the site itself
    scores = nearest.sum(1).tolist()
    best = sorted(range(count), key=lambda number: (scores[number], number))[: count - hostile]
    return [sites[number] for number in sorted(best)]


def all_sites(updates: Updates, sent: Tensors) -> list[str]:
    """Return all sites."""
    return sorted(updates)


@dataclass(frozen=True)
class Rule:
    """An aggregation rule: which sites count, and how their tensors are combined.

    Attributes:
        combine: `(updates, weights, sent)` -> the next tensors by key, in float64.
        select: `(updates, sent)` -> the names of the sites that count.
    """

    combine: Callable[[Updates, Weights, Tensors], dict[str, torch.Tensor]]
    select: Callable[[Updates, Tensors], list[str]] = all_sites


RULES: dict[str, Rule] = {
    "mean": Rule(weighted_mean),
    "median": Rule(coordinate_median),
    "trimmed_mean": Rule(trimmed_mean),
    "clipped_mean": Rule(clipped_mean),
    "krum": Rule(weighted_mean, select=krum_sites),
}


def aggregate_sa(
    site_vectors: Mapping[str, torch.Tensor],
    weights: Weights,
    mutual_information: MutualInformation,
    steps: int = 5,
    lr: float = 0.02,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the next global SA vector: argmax_f sum_n w_n Phi(f_n, f) (Algorithm 1).

    The ascent begins at f0 and takes `steps` steps of length `lr` * |f0| along the gradient, so that `lr` means the same at every
    scale of the features. A step that does not raise the sum is rejected, and the step length is halved; the result is therefore
    never worse than f0. The moving average of eq. 7 runs only at the sites, which begin each round with the global vector.

    Args:
        site_vectors: the vector [C] of each site.
        weights: by site, sum 1.
        mutual_information: Phi(pooled [1, C], sa [C]) -> scalar, differentiable in `sa`.
        steps, lr: number of steps, and their initial length as a fraction of |f0|.
        start: f0 [C]; by default the weighted mean of the sites' vectors.
    """
    sites = sorted(site_vectors)
    vectors = {site: site_vectors[site].double() for site in sites}
    nothing = torch.zeros((), dtype=torch.double)
    best = sum((weights[site] * vectors[site] for site in sites), nothing) if start is None else start.double()

    def objective(vector: torch.Tensor) -> torch.Tensor:
        terms = (weights[site] * mutual_information(vectors[site][None], vector) for site in sites)
        return sum(terms, nothing)

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
    return best


def aggregate(
    updates: Updates,
    weights: Weights,
    sent: Tensors,
    mutual_information: MutualInformation | None = None,
    rule: str = "mean",
) -> dict[str, torch.Tensor]:
    """Return the next global tensors, each in the type in which it was sent.

    Args:
        updates: tensors by site, all with the keys and shapes of `sent`.
        weights: by site, sum 1.
        sent: the tensors that the sites started from.
        mutual_information: if given, `sa.*` ascends it (`aggregate_sa`), starting from the result of `rule` on the sites' vectors.
        rule: a key of `RULES`.
    """
    chosen = RULES[rule].select(updates, sent)
    if len(chosen) < len(updates):
        total = sum(weights[site] for site in chosen)
        weights = {site: weights[site] / total for site in chosen}
    kept = {site: updates[site] for site in chosen}
    following = RULES[rule].combine(kept, weights, sent)
    result = {key: value.to(sent[key].dtype) for key, value in following.items()}
    if mutual_information is not None:
        for key in result:
            if key.startswith("sa."):
                # An SA tensor of shape [2, C] holds mean and variance over scans; mutual information concerns only the mean.
                mean: Any = 0 if sent[key].ndim == 2 else ...
                vectors = {site: update[key][mean] for site, update in kept.items()}
                result[key][mean] = aggregate_sa(vectors, weights, mutual_information, start=following[key][mean])
    return result


def _ordered(updates: Updates, sent: Tensors) -> dict[str, torch.Tensor]:
    """Return each tensor's values over the sites in ascending order, [sites, ...] by key, in float64."""
    return {
        key: torch.stack([updates[site][key].double() for site in sorted(updates)]).sort(dim=0).values
        for key in sorted(sent)
    }
