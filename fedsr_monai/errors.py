"""The one exception that stands for a user's mistake."""

from __future__ import annotations

import sys
from types import TracebackType


class UserError(Exception):
    """Something the user can mend: one line that names the file, site or key, what was found, what was expected and the cure.

    The command line prints the message without a traceback and exits with 2.
    """


def user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind `error`, which MONAI's configuration parser and transforms wrap in errors of their own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def plain_errors() -> None:
    """Let `python -m monai.bundle` end with the one line of a user's mistake, not with the tracebacks that bury it.

    The bundles call it in `initialize`. In any other program it does nothing, and other errors are shown as ever.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name == "monai.bundle.__main__":
        sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    mistake = user_error(error)
    if mistake is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"fedsr: {mistake}", file=sys.stderr)
