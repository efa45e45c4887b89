"""The progress of a training, in the terminal or in the log.

Ignite's `ProgressBar` draws one bar per epoch, so its remaining time is that of the epoch; here the bar spans the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm


def scalar_losses(output: Any) -> dict[str, float]:
    """Return the numbers of an engine's output by name: a single number is the `loss`, anything else is left out."""
    if isinstance(output, (list, tuple)):  # MONAI's decollated batch: the losses are the same in each item
        output = output[0] if output else {}
    if not isinstance(output, Mapping):
        output = {"loss": output}
    scalar = {
        key: value.item() if torch.is_tensor(value) and value.numel() == 1 else value for key, value in output.items()
    }
    return {str(key): float(value) for key, value in scalar.items() if isinstance(value, (int, float))}


class TrainingProgress:
    """Ignite handler: a bar with the running losses and the time left for all epochs of a run.

    Where standard error is not a terminal it writes one log line per epoch instead (level INFO).

    Args:
        desc: what is trained, say the name of the site.
        losses: the losses to show, in this order; all of them if None. Each is an exponential moving average.
        smoothing: weight of the past in that average, in [0, 1).
        output_transform: picks the mapping of losses, or the one loss, from `engine.state.output`.
        leave: whether the finished bar stays on the screen.
        name: name of the logger for the log lines.
    """

    def __init__(
        self,
        desc: str = "training",
        losses: list[str] | None = None,
        smoothing: float = 0.9,
        output_transform: Callable[[Any], Any] = lambda output: output,
        leave: bool = True,
        name: str = __name__,
    ) -> None:
        self.desc = desc
        self.losses = losses
        self.smoothing = smoothing
        self.output_transform = output_transform
        self.leave = leave
        self.logger = logging.getLogger(name)
        self.bar: tqdm | None = None
        self.running: dict[str, float] = {}
        self.started = 0.0
        self.first_iteration = 0

    def attach(self, engine: Engine) -> None:
        """Attach the handler to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.log_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.close)

    def total(self, engine: Engine) -> int | None:
        """Return the iterations of the whole run, or None where the loader has no length."""
        epochs, length = engine.state.max_epochs, engine.state.epoch_length
        return epochs * length if epochs and length else None

    def start(self, engine: Engine) -> None:
        """Open the bar."""
        self.close(engine)
        self.running = {}
        self.started = time.monotonic()
        self.first_iteration = engine.state.iteration  # above zero when a run is resumed
        self.bar = tqdm(
            desc=self.desc,
            total=self.total(engine),
            initial=self.first_iteration,
            unit="step",
            leave=self.leave,
            disable=None,  # tqdm's own test for a terminal
            dynamic_ncols=True,
        )

    def update(self, engine: Engine) -> None:
        """Average the losses of an iteration, and move the bar."""
        for key, value in scalar_losses(self.output_transform(engine.state.output)).items():
            past = self.running.get(key, value)
            self.running[key] = self.smoothing * past + (1.0 - self.smoothing) * value
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(self.losses_text(), refresh=False)
            self.bar.update(1)

    def losses_text(self) -> str:
        """Return the running losses as text."""
        shown = self.running if self.losses is None else {k: self.running[k] for k in self.losses if k in self.running}
        return ", ".join(f"{key} {value:.4f}" for key, value in shown.items())

    def log_epoch(self, engine: Engine) -> None:
        """Log a line where there is no bar."""
        if self.bar is not None and not self.bar.disable:
            return
        done = engine.state.iteration - self.first_iteration
        seconds = (time.monotonic() - self.started) / max(done, 1)
        total = self.total(engine)
        left = f", {tqdm.format_interval(seconds * (total - engine.state.iteration))} left" if total else ""
        self.logger.info(
            "%s: epoch %d/%s, %s, %.2f s per step%s",
            self.desc, engine.state.epoch, engine.state.max_epochs or "?", self.losses_text(), seconds, left,
        )  # fmt: skip

    def close(self, engine: Engine) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
