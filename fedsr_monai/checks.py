"""Checks of arguments that users give: one message for each kind of mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from fedsr_monai.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_whole_number(value: Any, least: int | None = None) -> bool:
    """Return whether `value` is an int (and not a bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite int or float (and not a bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_whole_number(where: str, value: Any, least: int = 1) -> None:
    """Refuse anything but a whole number of at least `least`.

    Raises:
        UserError: naming `where`, the argument or key that `value` was given for.

    Example:
        >>> check_whole_number("--rounds", 3)
        >>> check_whole_number("--rounds", 2.5)
        Traceback (most recent call last):
        ...
        fedsr_monai.errors.UserError: --rounds: found 2.5, expected a whole number of at least 1; correct it
    """
    if not is_whole_number(value, least):
        raise UserError(where, found=repr(value), expected=f"a whole number of at least {least}")


def check_choice(where: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse anything but one of `choices`.

    Raises:
        UserError: naming `where`, the argument or key that `value` was given for.
    """
    choices = list(choices)
    if value not in choices:
        raise UserError(where, found=repr(value), expected=f"one of {', '.join(map(str, choices))}")


def is_name(value: Any, longest: int = 100) -> bool:
    """Return whether `value` can be the name of a site, run or bundle.

    Such names consist of letters, digits, '.', '_' and '-', and begin with a letter or digit.
    """
    return isinstance(value, str) and len(value) <= longest and bool(NAME.fullmatch(value))
