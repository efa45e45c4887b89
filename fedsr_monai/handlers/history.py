"""The losses of a training as a table: one row an epoch."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from fedsr_monai.files import atomic_path
from fedsr_monai.handlers.progress import scalar_losses

KEYS = ["round", "site", "epoch", "iteration"]


def read_history(path: str | os.PathLike) -> list[dict[str, str]]:
    """The complete rows of a history, as text. A last row that a kill cut short is left out."""
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def write_history(path: str | os.PathLike, rows: list[dict[str, Any]]) -> None:
    """Write all rows anew, in one step. The columns are `KEYS`, then the losses in order of appearance."""
    columns = list(dict.fromkeys([*KEYS, *(key for row in rows for key in row)]))
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


class HistoryWriter:
    """Ignite handler that appends one row an epoch: round, site, epoch, iteration, and the mean of each loss.

    Several sites may append to one file from one process. A loss that appears for the first time adds a column, for
    which the file is written anew.

    Args:
        path: the CSV file, appended to if it exists.
        site: name of the site.
        round: the federated round, or a function that tells it; 0 outside a federation.
        output_transform: picks the mapping of losses, or the one loss, from ``engine.state.output``.
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
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write_row)

    def start_epoch(self, engine: Engine) -> None:
        self.sums, self.counts = {}, {}

    def update(self, engine: Engine) -> None:
        for key, value in scalar_losses(self.output_transform(engine.state.output)).items():
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def write_row(self, engine: Engine) -> None:
        number = self.round() if callable(self.round) else self.round
        row: dict[str, Any] = dict(
            zip(KEYS, [number, self.site, engine.state.epoch, engine.state.iteration], strict=True)
        )
        row |= {key: f"{total / self.counts[key]:.6g}" for key, total in self.sums.items()}
        self.append(row)

    def append(self, row: dict[str, Any]) -> None:
        """Append to the file if its columns hold the row; otherwise, or after a row cut short, write it anew.

        Rows of this round and site from this epoch on are those of a training that was killed, or is done again: they go.
        """
        rows = read_history(self.path) if self.path.exists() else []
        same = {key: str(row[key]) for key in ("round", "site")}
        kept = [old for old in rows if int(old["epoch"]) < row["epoch"] or any(old[key] != same[key] for key in same)]
        if rows and len(kept) == len(rows) and set(row) <= set(rows[0]) and self.path.read_bytes().endswith(b"\n"):
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, list(rows[0]), restval="").writerow(row)
        else:
            write_history(self.path, [*kept, row])
