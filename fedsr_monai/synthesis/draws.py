"""Single random numbers from torch's global generator. All training images are drawn from it, so its seed reproduces them."""

from __future__ import annotations

import torch


def uniform(low: float, high: float) -> float:
    """Draw a number between `low` and `high`."""
    return float(torch.empty(()).uniform_(low, high))


def chance(probability: float) -> bool:
    """Draw True with the given probability."""
    return bool(torch.rand(()) < probability)


def pick(choices: int) -> int:
    """Draw a whole number below `choices`."""
    return int(torch.randint(choices, ()))
