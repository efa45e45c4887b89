"""What the server checks in a site's answer before it may touch the global tensors.

A site may be broken or hostile. The checks find numbers that are not finite, keys and shapes that are not those that were sent,
claims about images out of range, answers to another round, and updates far larger than the others'. They do not find a site
that sends plausible, finite, well-sized but wrong numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

MAX_IMAGES = 100_000
NORM_FACTOR = 10.0
NORM_FLOOR = 0.1


def check_tensors(tensors: Any, reference: Mapping[str, torch.Tensor], who: str) -> list[str]:
    """Compare named tensors with the keys, shapes and types of `reference`; one line a breach, empty when there is none.

    Args:
        tensors: what arrived; torch tensors or numpy arrays by key.
        reference: what was sent.
        who: the sender, the start of each line.
    """
    if not isinstance(tensors, Mapping):
        return [f"{who}: found {type(tensors).__name__}, expected tensors by key"]
    reasons = []
    for key in sorted(reference):
        wanted = f"{_type(reference[key])} {list(reference[key].shape)}"
        if key not in tensors:
            reasons.append(f"{who}: {key}: missing, expected {wanted}")
            continue
        value = tensors[key]
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            reasons.append(f"{who}: {key}: found {type(value).__name__}, expected {wanted}")
            continue
        if _type(value) != _type(reference[key]) or list(value.shape) != list(reference[key].shape):
            reasons.append(f"{who}: {key}: found {_type(value)} {list(value.shape)}, expected {wanted}")
            continue
        bad = int((~torch.isfinite(torch.as_tensor(value))).sum())
        if bad:
            reasons.append(f"{who}: {key}: found NaN or Inf in {bad} of {reference[key].numel()} values, expected none")
    for key in sorted(map(str, set(tensors) - set(reference))):
        reasons.append(f"{who}: {key}: found a foreign tensor, expected only the keys that were sent")
    return reasons


def validate_update(
    update: Any,
    reference: Mapping[str, torch.Tensor],
    site: str,
    *,
    statistics: Mapping[str, Any],
    update_round: int,
    current_round: int,
    received: Mapping[str, Any] | set[str] = frozenset(),
    declared_images: int | None = None,
    max_images: int = MAX_IMAGES,
) -> list[str]:
    """Reasons to reject one site's answer, each naming site and key; empty when it is acceptable by itself.

    Args:
        update: the tensors that the site returned.
        reference: the tensors that were sent to it.
        site: the authenticated name of the sender, not a name found inside the answer.
        statistics: at least `images`, the number of training images behind the update: its weight in the average.
        update_round: the round that the answer is for.
        current_round: the round that is being collected.
        received: the sites whose answer to this round is in already.
        declared_images: the image count agreed on beforehand; any other claim is rejected.
        max_images: the largest claim accepted where none was declared.
    """
    who = f"site {site!r}"
    if update_round != current_round:
        kind = (
            "a late answer" if isinstance(update_round, int) and update_round < current_round else "not the open round"
        )
        return [f"{who}: round: found {update_round}, expected {current_round} ({kind})"]
    if site in received:
        return [f"{who}: round: found a second answer to round {current_round}, expected one (a duplicate)"]
    reasons = []
    images = statistics.get("images") if isinstance(statistics, Mapping) else None
    if isinstance(images, bool) or not isinstance(images, int):
        reasons.append(f"{who}: images: found {images!r}, expected a whole number")
    elif declared_images is not None and images != declared_images:
        reasons.append(f"{who}: images: found {images}, expected {declared_images} as declared")
    elif not 1 <= images <= max_images:
        reasons.append(f"{who}: images: found {images}, expected 1 to {max_images}")
    return reasons + check_tensors(update, reference, who)


def screen_norms(
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    reference: Mapping[str, torch.Tensor],
    factor: float = NORM_FACTOR,
    floor: float = NORM_FLOOR,
) -> dict[str, list[str]]:
    """Reasons, by site, to reject updates that move the weights far more than the others do.

    Each group of keys (`encoder`, `sa`, ...: the part before the first dot) is screened by itself, so that a small tensor cannot
    hide behind a large one. With d_n = |update_n - sent| and g = |sent|, an update is rejected when

        d_n > factor * max(median of the other sites' d, floor * g)      with at least two others,
        d_n > factor * g                                                 with fewer: nobody to compare with.

    The median stands up to a minority of bad sites. The floor keeps a site with many more images, thus more steps than
    the others, from being rejected for working: by default nothing that moves the weights by less than their own norm ever is.
    Where everything sent is zero, sqrt(number of values) takes the place of g.

    Args:
        updates: tensors by site; they have passed `validate_update`.
        reference: the tensors that were sent.
    """
    reasons: dict[str, list[str]] = {}
    for group in sorted({key.split(".")[0] for key in reference}):
        keys = sorted(key for key in reference if key.split(".")[0] == group)
        scale = _norm(reference[key] for key in keys) or math.sqrt(sum(reference[key].numel() for key in keys))
        distances = {}
        for site, update in updates.items():
            moved = {key: _norm([torch.as_tensor(update[key]).double() - reference[key].double()]) for key in keys}
            distances[site] = (math.hypot(*moved.values()), max(moved, key=moved.__getitem__))
        for site, (distance, worst) in sorted(distances.items()):
            others = [other for name, (other, _) in distances.items() if name != site]
            usual = max(float(np.median(others)), floor * scale) if len(others) >= 2 else scale
            if not distance <= factor * usual:
                against = "the other sites' median" if len(others) >= 2 else "the norm of what was sent"
                reasons.setdefault(site, []).append(
                    f"site {site!r}: {worst}: found an update of norm {distance:.3g} in {group}.*, "
                    f"expected at most {factor * usual:.3g} ({factor:g} times {against})"
                )
    return reasons


def _type(value: torch.Tensor | np.ndarray) -> str:
    return str(value.dtype).removeprefix("torch.")


def _norm(tensors) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
