"""The server's checks of a site's result before it may touch the global tensors, as pure functions.

A site may be broken or hostile. The checks find numbers that are not finite, keys and shapes that differ from those that were sent,
image counts out of range, results of another round, and updates far larger than those of the other sites. They do not detect a site
that sends wrong numbers of plausible size; the robust rules of `fedsr_monai.federation.aggregation` bound what such a site can do.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from fedsr_monai.checks import is_name, is_whole_number

MAX_IMAGES = 100_000
LONGEST_REASON = 200
MOST_FOREIGN = 3  # foreign keys named one by one
NORM_FACTOR = 10.0
NORM_FLOOR = 0.002
NEAR_ZERO = 0.01  # root mean square below which a tensor's norm says nothing about how large a step may be


def plain_tensor(value: Any) -> torch.Tensor | None:
    """Return an array or tensor as a dense CPU tensor; None for anything else (sparse, nested or meta tensors, subclasses, objects)."""
    if type(value) is np.ndarray:
        if value.dtype.kind not in "fiub" or not value.dtype.isnative:
            return None
        return torch.tensor(np.ascontiguousarray(value))
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.is_nested or value.is_quantized:
        return None
    if value.layout != torch.strided or value.device.type == "meta":
        return None
    return value.detach().cpu()


def check_tensors(tensors: Any, reference: Mapping[str, torch.Tensor], who: str) -> list[str]:
    """Compare named tensors with the keys, shapes and types of `reference`, and return one line per violation.

    NaN and infinite values are violations too.

    Args:
        tensors: what arrived: torch tensors or numpy arrays by key, or anything else.
        reference: what was sent.
        who: the sender, with which each line begins.
    """
    if not isinstance(tensors, Mapping):
        return [f"{who}: found {type(tensors).__name__}, expected tensors by key"]
    reasons = []
    for key in sorted(reference):
        expected = _kind(reference[key])
        if key not in tensors:
            reasons.append(f"{who}: {key}: missing, expected {expected}")
            continue
        found = _kind(tensors[key])
        value = plain_tensor(tensors[key]) if found == expected else None
        if value is None:
            reasons.append(f"{who}: {key}: found {found}, expected {expected}")
            continue
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            reasons.append(f"{who}: {key}: found NaN or Inf in {bad} of {reference[key].numel()} values, expected none")
    foreign = [key for key in tensors if not (type(key) is str and key in reference)]
    for key in sorted(key if type(key) is str else brief(key) for key in foreign[:MOST_FOREIGN]):
        reasons.append(f"{who}: {key[:60]}: found a foreign tensor, expected only the keys that were sent")
    if len(foreign) > MOST_FOREIGN:
        more = len(foreign) - MOST_FOREIGN
        reasons.append(f"{who}: found {more} more foreign tensors, expected only the keys that were sent")
    return reasons


def validate_update(
    update: Any,
    reference: Mapping[str, torch.Tensor],
    site: Any,
    *,
    images: Any,
    update_round: Any,
    current_round: int,
    received: Collection[str] = (),
    asked: Collection[str] | None = None,
    declared_images: int | None = None,
    max_images: int = MAX_IMAGES,
) -> list[str]:
    """Return the reasons to reject one site's result, each naming the site and the key; empty if it is acceptable by itself.

    Args:
        update: the tensors that the site returned.
        reference: the tensors that were sent to it.
        site: the authenticated name of the sender, not a name found inside the result.
        images: the number of training images that the site claims, which determines its weight in the average.
        update_round: the round that the result is for.
        current_round: the open round.
        received: the sites whose result for this round has already been accepted.
        asked: the sites that were asked in this round; None for any site.
        declared_images: the image count agreed on beforehand; any other claim is rejected.
        max_images: the largest claim accepted if no count was declared.
    """
    if not is_name(site):
        return [f"site {brief(site)}: found a name that no site can have, expected letters, digits, '.', '_' and '-'"]
    who = f"site {site!r}"
    if asked is not None and site not in asked:
        return [f"{who}: found a result of a site that was not asked, expected one of {len(asked)} others"]
    if not is_whole_number(update_round) or update_round != current_round:
        late = is_whole_number(update_round) and update_round < current_round
        kind = "a late result" if late else "not the open round"
        return [f"{who}: round: found {brief(update_round)}, expected {current_round} ({kind})"]
    if site in received:
        return [f"{who}: round: found a second result of round {current_round}, expected one (a duplicate)"]
    reasons = []
    if not is_whole_number(images):
        reasons.append(f"{who}: images: found {brief(images)}, expected a whole number")
    elif declared_images is not None and images != declared_images:
        reasons.append(f"{who}: images: found {brief(images)}, expected {declared_images} as declared")
    elif not 1 <= images <= max_images:
        reasons.append(f"{who}: images: found {brief(images)}, expected 1 to {max_images}")
    return reasons + check_tensors(update, reference, who)


def screen_norms(
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    reference: Mapping[str, torch.Tensor],
    factor: float = NORM_FACTOR,
    floor: float = NORM_FLOOR,
) -> dict[str, list[str]]:
    """Return the reasons, by site, to reject updates that move the weights far more than those of the other sites do.

    Every tensor is screened by itself, so that a small one (a first layer, an SA vector) cannot hide behind large ones. With
    d_n = |update_n - sent| and g = |sent| for a tensor, an update is rejected if

        d_n > factor * max(median of the other sites' d, r * g, floor * g)      with at least two other sites,
        d_n > factor * max(g, 0.01 sqrt(number of values))                      with fewer, which are too few to compare with.

    The medians withstand a minority of bad sites. r is the typical relative movement of a tensor: for each tensor, the median of the other
    sites' d / g is taken, and r is the median of these over all tensors. It is needed because a part of the network that hardly acts (the
    attention of SCIE) is moved only by noise, which may differ between honest sites by more than `factor`. The floor keeps a site from being
    rejected if the others hardly move anything. The term of 0.01 per value keeps a site from being rejected for the last layers of the
    registration, which start so near zero that any step is large in comparison. If a tensor was sent as all zeros, g is
    sqrt(number of values).

    Args:
        updates: tensors by site; they have passed `validate_update`.
        reference: the tensors that were sent.
        factor: how many times as far as the others a site may move a tensor.
        floor: the smallest movement attributed to the other sites, as a fraction of the tensor's norm.
    """
    if not reference:
        return {}
    scales, moved = dict[str, float](), dict[str, dict[str, float]]()
    for key in sorted(reference):
        sent = reference[key].double()
        scales[key] = float(sent.norm()) or math.sqrt(sent.numel())
        moved[key] = {site: float((update[key].double() - sent).norm()) for site, update in updates.items()}
    reasons: dict[str, list[str]] = {}
    alone = len(updates) <= 2
    for site in sorted(updates):
        if alone:
            usual = {key: max(scale, NEAR_ZERO * math.sqrt(reference[key].numel())) for key, scale in scales.items()}
        else:
            others = {key: _median_of_others(distances, site) for key, distances in moved.items()}
            least = max(floor, float(np.median([others[key] / scales[key] for key in others])))
            usual = {key: max(others[key], least * scale) for key, scale in scales.items()}
        for key, limit in usual.items():
            if not moved[key][site] <= factor * limit:
                against = "the norm of what was sent" if alone else "the other sites' median"
                reasons.setdefault(site, []).append(
                    f"site {site!r}: {key}: found an update of norm {moved[key][site]:.3g}, "
                    f"expected at most {factor * limit:.3g} ({factor:g} times {against})"
                )
    return reasons


def _median_of_others(moved: Mapping[str, float], site: str) -> float:
    return float(np.median([distance for name, distance in moved.items() if name != site]))


def brief(value: Any) -> str:
    """Return a short text for any value, of at most 60 characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 40
    try:
        text = short.repr(value)
    except Exception:  # an int of more than 4,300 digits, or an object whose repr raises
        text = f"a value of type {type(value).__name__}"
    return " ".join(text.split())[:60]


def _kind(value: Any) -> str:
    if type(value) not in (torch.Tensor, torch.nn.Parameter, np.ndarray):
        return type(value).__name__[:60]
    if isinstance(value, torch.Tensor) and (value.is_nested or value.layout != torch.strided):
        return f"a {'nested' if value.is_nested else str(value.layout).removeprefix('torch.')} tensor"
    where = " on meta" if isinstance(value, torch.Tensor) and value.device.type == "meta" else ""
    return f"{str(value.dtype).removeprefix('torch.')[:60]} {list(value.shape)}{where}"
