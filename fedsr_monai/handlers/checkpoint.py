"""Checkpoints that a kill in the middle of a save cannot destroy.

`monai.handlers.CheckpointSaver` writes with `atomic=False`, straight over the last good file, and Ignite's
`DiskSaver(atomic=True)` neither syncs the data before the rename nor gives the group read permission.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from safetensors.torch import save
from torch import nn

from fedsr_monai.errors import UserError
from fedsr_monai.files import write_bytes


def state_of(item: Any) -> Any:
    """Return the `state_dict` of a module (unwrapped from data parallelism) or optimiser; anything else unchanged."""
    if isinstance(item, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        item = item.module
    return item.state_dict() if hasattr(item, "state_dict") else item


def save_checkpoint(content: nn.Module | Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint atomically: the old file stays whole until the new one is on the disk.

    Args:
        content: a module, whose plain state dict is written in the form that MONAI's model zoo, `monai.bundle.load` and
            MONAI Label read; or a mapping of names to tensors, plain values, and modules or optimisers, whose
            `state_dict` is written. A `.safetensors` file holds names and tensors only.
        path: the file; its folder is made if missing.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    state = (
        state_of(content)
        if isinstance(content, nn.Module)
        else {name: state_of(item) for name, item in content.items()}
    )
    if Path(path).suffix == ".safetensors":
        content_bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    else:
        buffer = io.BytesIO()  # torch's own writer turns a full disk into an error that does not say so
        torch.save(state, buffer)
        content_bytes = buffer.getvalue()
    write_bytes(path, content_bytes)


class AtomicCheckpoint:
    """Ignite handler that saves a checkpoint to one file, every few epochs or when a metric is the best yet.

    Attach it to the trainer (every `interval` epochs and at the end), or with `key_metric` to the evaluator whose
    `state.metrics` hold that metric. Under distributed training only rank 0 writes.

    Args:
        path: the file to write, say `models/model.pt`.
        content: what to save, as for `save_checkpoint`: a network, or several things by name.
        interval: epochs between two saves; not used with `key_metric`.
        key_metric: name of the metric to keep the best of. A value that is not finite is never the best.
        greater_is_better: whether a higher `key_metric` is better.

    Raises:
        UserError: `key_metric` is not among the engine's metrics.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        content: nn.Module | Mapping[str, Any],
        interval: int = 1,
        key_metric: str | None = None,
        greater_is_better: bool = True,
    ) -> None:
        self.path = Path(path)
        self.content = content
        self.interval = interval
        self.key_metric = key_metric
        self.sign = 1.0 if greater_is_better else -1.0
        self.best: float | None = None
        self.saved: int | None = None  # epoch of the last save in this call of the engine

    def attach(self, engine: Engine) -> None:
        """Attach the handler to a trainer, or with `key_metric` to an evaluator."""
        if self.key_metric is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_if_best)
            return
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        # For the last epochs, if their number is not a multiple of the interval, and for a file that was lost or
        # damaged, if a finished training is started again.
        engine.add_event_handler(Events.COMPLETED, self.save_at_end)

    def begin(self, engine: Engine) -> None:
        """Forget what an earlier call of the engine wrote: its epochs may have the same numbers."""
        self.saved = None

    def save_at_end(self, engine: Engine) -> None:
        """Write the checkpoint, unless it was written after the last epoch."""
        if self.saved != engine.state.epoch:
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write the checkpoint."""
        if idist.get_rank() == 0:
            save_checkpoint(self.content, self.path)
            self.saved = engine.state.epoch

    def save_if_best(self, engine: Engine) -> None:
        """Write the checkpoint if the metric is the best yet."""
        metrics = engine.state.metrics
        if self.key_metric not in metrics:
            raise UserError(
                "AtomicCheckpoint: key_metric",
                found=repr(self.key_metric),
                expected=f"one of the evaluator's metrics ({', '.join(sorted(metrics)) or 'none'})",
            )
        value = float(metrics[self.key_metric])
        if math.isfinite(value) and (self.best is None or self.sign * value > self.sign * self.best):
            self.save(engine)
            self.best = value

    def state_dict(self) -> dict[str, float | None]:
        """Return the best metric so far."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Restore the best metric so far."""
        self.best = state["best"]
