"""`python -m fedsr_monai` is `fedsr`: the process of the command, from its first import to its end.

Python ends by the signal itself, without this program's line and status, where an interrupt comes while modules are imported
or while the interpreter closes. Here it ends in the same way at any moment.
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
