"""The `fedsr` command: it finds the command's function, calls it through fire, and turns what goes wrong into one line.

Nothing heavy is imported here or at the top of the modules in `fedsr_monai.commands`, so that `fedsr --help` answers at
once.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fedsr_monai.commands import COMMANDS
from fedsr_monai.commands.arguments import call, wants_help
from fedsr_monai.commands.help import command_help, overview
from fedsr_monai.errors import UserError, causes

MISTAKE = 2  # the user can fix it
FAILURE = 1  # the machine could not do it
INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0, 1 (machine), 2 (user's mistake) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with progress_lines():
            run(arguments)
            sys.stdout.flush()  # not at exit, where a reader that has left could no longer be caught
    except BrokenPipeError:
        # whoever read our output has left; without this Python would complain once more when it closes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        return say("interrupted; run the same command again to resume", INTERRUPTED)
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        return say(*known)
    return 0


def run(arguments: list[str]) -> None:
    """Print the help that is asked for, or call the command.

    Raises:
        UserError: there is no such command, or its arguments are wrong.
    """
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview(COMMANDS))
        return
    name = {"--version": "version", "personalize": "personalise"}.get(arguments[0], arguments[0])
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(COMMANDS)};"
        raise UserError(f"unknown command '{name}': {hint} see `fedsr --help`")
    if wants_help(arguments[1:]):
        print(command_help(name, COMMANDS[name]))
        return
    if sys.stderr.isatty() and name != "version":
        print(f"fedsr {name}: loading PyTorch and MONAI ...", file=sys.stderr)  # takes seconds, without any bar
    call(name, COMMANDS[name], arguments[1:])


@contextmanager
def progress_lines() -> Iterator[None]:
    """Write the package's log to standard error; on a terminal, which shows progress bars, only its warnings.

    Ignite's log is silenced: it repeats errors that are reported here, and logs an interrupt without a reason.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log, ignite = logging.getLogger("fedsr_monai"), logging.getLogger("ignite.engine.engine")
    levels = log.level, ignite.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    ignite.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(levels[0])
        ignite.setLevel(levels[1])


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return what to tell the user and the exit status; None for a bug, whose traceback should be shown."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return str(cause), MISTAKE
        if isinstance(cause, OSError) and cause.errno in FULL:
            where = cause.filename or "the disk"
            return f"{where}: {cause.strerror}; free some space and run the same command again", FAILURE
        if isinstance(cause, OSError) and cause.errno in FORBIDDEN:
            return f"{cause.filename}: {cause.strerror}, expected access to it; change its permissions", MISTAKE
        if isinstance(cause, OSError) and cause.errno in NO_PATH and cause.filename is not None:
            # `Path.is_dir()` and the like raise these two instead of answering no
            return f"{cause.filename}: {cause.strerror}, expected a path of this file system; correct it", MISTAKE
        if isinstance(cause, MemoryError) or "OutOfMemory" in type(cause).__name__ or "not enough memory" in str(cause):
            return (
                "out of memory; close other programs, or choose a smaller grid, preset or number of processes",
                FAILURE,
            )
    return None


def say(message: str, status: int) -> int:
    """Print a message to standard error, one line per mistake, and return the status."""
    for line in message.splitlines():
        print(f"fedsr: {line}", file=sys.stderr)
    return status
