"""Record the progress and the score of a training, for MONAI Label's `/info` and the progress bars in 3D Slicer."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator

from fedsr_monai.files import is_there, read_json, write_json


class TrainStats:
    """Ignite handler that keeps a JSON file up to date, attached to a trainer and to its validator.

    MONAI Label's clients know these keys: `epoch`, `total_epochs`, `total_time` once the training is over, and `best_metric`,
    the best mean Dice over the validation scans so far, which only a training with a validation split has.

    Args:
        path: path of the file; each training begins it anew.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, or with a MONAI `Evaluator`."""
        if isinstance(engine, Evaluator):
            engine.add_event_handler(Events.COMPLETED, self.score)
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def start(self, trainer: Engine) -> None:
        """Begin the file anew."""
        self.started = time.perf_counter()
        write_json(self.path, {"epoch": 0, "total_epochs": trainer.state.max_epochs})

    def epoch(self, trainer: Engine) -> None:
        """Count an epoch."""
        self.update(epoch=trainer.state.epoch)

    def score(self, validator: Evaluator) -> None:
        """Note the key metric of a validation."""
        value = float(validator.state.metrics[validator.state.key_metric_name])
        self.update(key_metric=value, best_metric=max(value, read_stats(self.path).get("best_metric", value)))

    def complete(self, trainer: Engine) -> None:
        """Note that the training is over."""
        self.update(total_time=round(time.perf_counter() - self.started, 1))

    def update(self, **values: Any) -> None:
        """Add values to the file."""
        write_json(self.path, read_stats(self.path) | values)


def read_stats(path: Path) -> dict[str, Any]:
    """Return what a training has recorded; empty before the first one.

    Raises:
        UserError: the file is damaged.
    """
    return read_json(path, "the record of a training", "delete it") if is_there(path) else {}
