"""The exception that stands for a user's mistake, and how it reaches the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import TracebackType


class UserError(Exception):
    """Report something that the user can fix, in one line: `where: found ..., expected ...; fix`.

    The command line prints the line without a traceback and exits with status 2.

    Args:
        where: the file, folder, site, key or option that is wrong; the whole message if nothing else is given.
        found: what was found there.
        expected: what should be there.
        fix: what to do about it, as an imperative; by default "correct it".

    Example:
        >>> print(UserError("--rounds", found="0", expected="a whole number of at least 1"))
        --rounds: found 0, expected a whole number of at least 1; correct it
    """

    def __init__(self, where: object, found: str = "", expected: str = "", fix: str = "correct it") -> None:
        self.where, self.found, self.expected, self.fix = str(where), found, expected, fix
        super().__init__(f"{where}: found {found}, expected {expected}; {fix}" if found else str(where))

    def __reduce__(self) -> tuple:
        # Exceptions are pickled by their message alone; worker processes hand this one back with its fields.
        return type(self), (self.where, self.found, self.expected, self.fix)


class UserErrors(UserError):
    """Several mistakes at once, one line each.

    Args:
        errors: the mistakes; anything that prints as one line.
    """

    def __init__(self, errors: Iterable[object]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(map(str, self.errors)))

    def __reduce__(self) -> tuple:
        return type(self), (self.errors,)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and what it came from, outermost first.

    MONAI's configuration parser and transforms wrap what happens inside them, some with `raise ... from`, some while
    they handle the error. The chain ends where an exception says that it stands for itself (`raise ... from None`).
    """
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def user_error(error: BaseException | None) -> UserError | None:
    """Return the user's mistake behind `error`; None where nothing in its chain of causes is a `UserError`."""
    return next((cause for cause in causes(error) if isinstance(cause, UserError)), None)


def root_cause(error: BaseException) -> BaseException:
    """Return the user's mistake behind `error`, or else the exception that the others were raised from."""
    mistake = user_error(error)
    while mistake is None and error.__cause__ is not None:
        error = error.__cause__
    return mistake or error


def one_line(error: BaseException) -> str:
    """Return an exception as one line: the user's mistake behind it, else its root cause with the type."""
    error = root_cause(error)
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


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
