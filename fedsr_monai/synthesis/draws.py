"""Single random numbers from torch's global generator, of which every training image is made: seed that and the same images follow."""

from __future__ import annotations

import torch


def uniform(low: float, high: float) -> float:
    """Draw a number between two."""
    return float(torch.empty(()).uniform_(low, high))


def chance(probability: float) -> bool:
    """Draw whether something happens."""
    return bool(torch.rand(()) < probability)


def pick(choices: int) -> int:
    """Draw a whole number below `choices`."""
    return int(torch.randint(choices, ()))
