"""What a site says about its training, brought into one fixed form: it is written into tables and JSON, and shown in reports."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypedDict

LARGEST_NUMBER = 1e30  # sums and squares of such numbers stay finite
LARGEST_COUNT = 10**9
MOST_LOSSES = 50
MOST_EPOCHS = 1000
LOSS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,49}")
# Columns of the tables that losses are written beside: a loss of such a name would take the place of the server's own number.
RESERVED_NAMES = ("round", "site", "epoch", "iteration", "seconds", "server_seconds", "bytes_down", "bytes_up")


class Statistics(TypedDict):
    """The statistics of a round at a site: counts, seconds, mean losses of its last epoch, and one row per epoch.

    A row holds `epoch` and `iteration`, counted over the whole run, and the mean of each loss.
    """

    iterations: int
    seconds: float
    losses: dict[str, float]
    epochs: list[dict[str, int | float]]


def parse_statistics(content: Any) -> Statistics:
    """Return the statistics in `content`, which may be anything; what does not fit is left out.

    Counts are 0 to 10^9, other numbers are finite and at most 1e30; there are at most 50 losses, whose names are words of up to
    50 characters and none of the tables' own columns, and at most 1000 epochs. Nothing that a site sends makes this raise.
    """
    fields: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    rows = _get(fields, "epochs")
    return {
        "iterations": _count(_get(fields, "iterations")) or 0,
        "seconds": max(0.0, _number(_get(fields, "seconds")) or 0.0),
        "losses": parse_losses(_get(fields, "losses")),
        "epochs": [row for row in map(parse_epoch, rows[:MOST_EPOCHS]) if row] if isinstance(rows, list) else [],
    }


def _get(fields: Mapping[Any, Any], key: str) -> Any:
    try:
        return fields.get(key)
    except Exception:  # a mapping of a class of its own
        return None


def parse_epoch(row: Any) -> dict[str, int | float]:
    """Return a row of `epochs`, or an empty one where it has no valid `epoch` and `iteration`."""
    if not isinstance(row, dict):
        return {}
    epoch, iteration = _count(row.get("epoch")), _count(row.get("iteration"))
    return {} if epoch is None or iteration is None else {"epoch": epoch, "iteration": iteration, **parse_losses(row)}


def parse_losses(values: Any) -> dict[str, float]:
    """Return the losses by name among `values`."""
    losses: dict[str, float] = {}
    for name, value in values.items() if isinstance(values, dict) else ():
        number = _number(value)
        named = type(name) is str and LOSS_NAME.fullmatch(name) and name not in RESERVED_NAMES
        if named and number is not None and len(losses) < MOST_LOSSES:
            losses[name] = number
    return losses


def _number(value: Any) -> float | None:
    plain = type(value) in (int, float) and -LARGEST_NUMBER <= value <= LARGEST_NUMBER and math.isfinite(value)
    return float(value) if plain else None


def _count(value: Any) -> int | None:
    """Return a whole number from an int or a float that is one (the means of an epoch travel as floats)."""
    number = _number(value)
    return int(number) if number is not None and number == int(number) and 0 <= number <= LARGEST_COUNT else None
