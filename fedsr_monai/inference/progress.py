"""How far a run over scans is: a bar on a terminal, one line per scan elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """Show the progress of a run on standard error, and print lines without breaking the bar.

    Args:
        total: number of scans.
        show: False shows neither bar nor lines per scan.
    """

    def __init__(self, total: int, show: bool = True) -> None:
        self.total, self.show, self.done, self.started = total, show, 0, time.monotonic()
        self.bar = tqdm(total=total, desc="segment", unit="scan", disable=None if show else True)

    def advance(self, name: str) -> None:
        """Say that a scan has been dealt with."""
        self.done += 1
        self.bar.update()
        if self.show and self.bar.disable and self.total > 1:
            seconds = (time.monotonic() - self.started) / self.done
            left = tqdm.format_interval(seconds * (self.total - self.done))
            self.say(f"{name}: {self.done} of {self.total}, {seconds:.1f} s per scan, {left} left")

    def say(self, text: str) -> None:
        """Print a line to standard error, above the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
