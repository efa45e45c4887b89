"""Progress of long work: a bar on a terminal, one log line per finished item elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress(tqdm):
    """A tqdm bar that logs one line per finished item (level INFO) where standard error is not a terminal.

    The command line shows the log lines; other programs see them if they configure logging.

    Args:
        *args: as for tqdm.
        quiet: show neither bar nor lines.
        announce: log a line at the beginning too, for items that take minutes.
        **kwargs: as for tqdm, without `disable`.

    Example::

        for scan in Progress(scans, desc="segment", unit="scan"):
            ...
    """

    total: float | None
    drawn: ClassVar[list[Progress]] = []  # the bars on the terminal, innermost last

    def __init__(self, *args: Any, quiet: bool = False, announce: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, disable=True if quiet else None, **kwargs)
        self.logs = self.disable and not quiet
        if self.logs:  # tqdm leaves these out of a bar that is not drawn
            self.desc, self.unit = kwargs.get("desc") or "", kwargs.get("unit", "it")
            self.postfix, self.initial = "", self.n
            self.start_t = time.time()
            if self.total is None and self.iterable is not None and hasattr(self.iterable, "__len__"):
                self.total = len(self.iterable)
            if announce and self.total and self.n < self.total:
                logger.info(f"{self.desc}: {self.unit} {self.n + 1} of {self.total} begins")
        if not self.disable:
            self.drawn.append(self)

    def close(self) -> None:
        """Take the bar off the terminal, as tqdm does."""
        if self in self.drawn:
            self.drawn.remove(self)
        super().close()

    def __iter__(self) -> Iterator:
        if not self.logs:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more items as finished; without a terminal, log a line."""
        if not self.logs:
            return super().update(n)
        self.n += n
        parts = [f"{self.desc}: {self.unit} {self.n} of {self.total or '?'}"]
        if self.total and self.n < self.total:
            left = (time.time() - self.start_t) / (self.n - self.initial) * (self.total - self.n)
            parts.append(f"about {self.format_interval(left)} left")
        logger.info(", ".join(parts) + (f": {self.postfix}" if self.postfix else ""))
        return True


def doing(what: str) -> None:
    """Show on the bar, if there is one, what is being done with the current item."""
    if Progress.drawn:
        Progress.drawn[-1].set_postfix_str(what)


def say(line: object) -> None:
    """Print a line to standard error at once, above any bar."""
    tqdm.write(str(line), file=sys.stderr)
