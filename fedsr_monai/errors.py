"""The one exception that stands for a user's mistake."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: one line that names the file, site or key, what was found, what was expected and the cure.

    The command line prints the message without a traceback and exits with 2.
    """


def user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind `error`, which MONAI's configuration parser and transforms wrap in errors of their own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
