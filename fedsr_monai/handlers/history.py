"""The losses of a training as a table: one row per epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from fedsr_monai.files import is_there, read_csv, write_csv
from fedsr_monai.handlers.progress import scalar_losses

KEYS = ["round", "site", "epoch", "iteration"]


def read_history(path: str | os.PathLike) -> list[dict[str, str]]:
    """Read the rows of a history, as text.

    Raises:
        UserError: the table is damaged.
    """
    return read_csv(path)


def write_history(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows of a history atomically. The columns are `KEYS`, then the losses in order of appearance.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_csv(path, list(dict.fromkeys([*KEYS, *(key for row in rows for key in row)])), rows)


class HistoryWriter:
    """Ignite handler that adds one row per epoch to a table: round, site, epoch, iteration, and the mean of each loss.

    Several sites may write to one file from one process. A loss that appears for the first time adds a column.

    Args:
        path: the CSV file; rows are added to one that exists.
        site: name of the site.
        round: the federated round, or a function that returns it; 0 outside a federation.
        output_transform: picks the mapping of losses, or the one loss, from `engine.state.output`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        site: str,
        round: int | Callable[[], int] = 0,
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self.path = Path(path)
        self.site = site
        self.round = round
        self.output_transform = output_transform
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def attach(self, engine: Engine) -> None:
        """Attach the handler to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write_row)

    def start_epoch(self, engine: Engine) -> None:
        """Forget the losses of the last epoch."""
        self.sums, self.counts = {}, {}

    def update(self, engine: Engine) -> None:
        """Add the losses of an iteration."""
        for key, value in scalar_losses(self.output_transform(engine.state.output)).items():
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def write_row(self, engine: Engine) -> None:
        """Write the mean losses of the epoch."""
        number = self.round() if callable(self.round) else self.round
        row: dict[str, Any] = dict(
            zip(KEYS, [number, self.site, engine.state.epoch, engine.state.iteration], strict=True)
        )
        row |= {key: f"{total / self.counts[key]:.6g}" for key, total in self.sums.items()}
        self.append(row)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the file atomically.

        Older rows of this round and site from this epoch on are dropped: they belong to a training that was killed or
        is being repeated.
        """
        rows = read_history(self.path) if is_there(self.path) else []
        same = {key: str(row[key]) for key in ("round", "site")}
        kept = [old for old in rows if int(old["epoch"]) < row["epoch"] or any(old[key] != same[key] for key in same)]
        write_history(self.path, [*kept, row])
