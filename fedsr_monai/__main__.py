"""The entry point of `fedsr` and `python -m fedsr_monai`, from the first import to the exit status.

If an interrupt comes while modules are imported or while the interpreter shuts down, Python normally ends through the
signal, without this program's message and exit status. Here an interrupt ends the program in the same way at any
moment.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def program() -> NoReturn:
    """Run the command line of this process and exit with its status (see `fedsr_monai.cli.main`)."""
    status = 130
    try:
        from fedsr_monai.cli import main

        status = main()
    except KeyboardInterrupt:  # before `main` could catch it, or a second one
        print("fedsr: interrupted; run the same command again to resume", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has ended
    sys.exit(status)


if __name__ == "__main__":
    program()
