"""A site's statistics about its training, brought into one fixed form, because they are written to tables and JSON and shown in reports."""

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
# Other columns of the tables of losses: a loss with such a name would overwrite the server's own number.
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

    Counts are 0 to 10^9, and other numbers are finite and at most 1e30 in magnitude. There are at most 1000 epochs and at most 50
    losses; the name of a loss is a word of up to 50 characters that is not a column of the tables. This never raises, whatever a
    site sends.
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
    except Exception:  # a mapping of some foreign class may raise anything
        return None


def parse_epoch(row: Any) -> dict[str, int | float]:
    """Return a row of `epochs`, or an empty one if it has no valid `epoch` and `iteration`."""
    if not isinstance(row, dict):
        return {}
    epoch, iteration = _count(row.get("epoch")), _count(row.get("iteration"))
    return {} if epoch is None or iteration is None else {"epoch": epoch, "iteration": iteration, **parse_losses(row)}


def parse_losses(values: Any) -> dict[str, float]:
    """Return the entries of `values` that are valid losses, by name."""
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
    """Return an int, or a float with an integer value, as int (an epoch's numbers travel as floats); None for anything else."""
    number = _number(value)
    return int(number) if number is not None and number == int(number) and 0 <= number <= LARGEST_COUNT else None
