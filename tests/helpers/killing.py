"""Runs that are killed again and again, each at another write or at a random moment, until one comes to its end."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable

FORK = multiprocessing.get_context("fork")


def killed_at_its_writes(run: Callable[[], None]) -> int:
    """Kill a run as its first file gets its name, the next one as its second does, and so on; return the number of kills."""

    def dies(write: int) -> None:
        replace, written = os.replace, []

        def counted(*paths) -> None:
            written.append(paths)
            if len(written) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = counted
        run()

    for write in range(1, 100):
        process = FORK.Process(target=dies, args=(write,))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0
            return write - 1
    raise AssertionError("it never ends")


def killed_at_random(run: Callable[[], None], kills: int, seconds: float, seed: int) -> int:
    """Kill runs after random times of up to `seconds`, and let the last one end; return how many were killed before their end."""
    draw, killed = random.Random(seed), 0
    for _ in range(kills):
        process = FORK.Process(target=run)
        process.start()
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    process = FORK.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 0
    return killed
