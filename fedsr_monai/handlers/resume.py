"""Resuming a training that was stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from fedsr_monai.errors import UserError, one_line
from fedsr_monai.files import check_regular, is_there
from fedsr_monai.handlers.checkpoint import save_checkpoint, state_of
from fedsr_monai.networks.weights import check_finite, read_checkpoint


class ResumableCheckpoint:
    """Ignite handler that writes the whole state of a training after every epoch and, if asked, resumes from it.

    The state is that of all `parts`, of torch's random numbers and of the engine's counters: a training that was killed
    and resumed ends with the same numbers as one that was not (to the bit on a CPU). The file is replaced atomically.
    Under distributed training rank 0 writes and every rank reads; ranks other than 0 draw new random numbers.

    Args:
        path: the file.
        parts: modules, optimisers and schedulers by name, all with a `state_dict`; None stands for a part that is
            switched off.
        resume: whether to restore the state from the file if it exists; otherwise the file is overwritten.

    Raises:
        UserError: the file is damaged, or is the state of another training.
    """

    def __init__(self, path: str | os.PathLike, parts: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.resume = resume
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Attach the handler to a trainer."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def restore(self, engine: Engine) -> None:
        """Restore the parts, the counters and the random numbers from the file."""
        if not (self.resume and is_there(self.path)):
            return
        check_regular(self.path, "the state of this training")
        try:
            state = read_checkpoint(self.path)
            check_finite(state)
            for name, part in self.parts.items():
                check_types(state[name], part.state_dict())
                part.load_state_dict(state[name])
            engine.state.epoch, engine.state.iteration = int(state["epoch"]), int(state["iteration"])
            if idist.get_rank() == 0:
                torch.set_rng_state(state["random"])
                if not isinstance(state["random_cuda"], list):
                    raise TypeError("random_cuda: no list")
                for device, random in zip(range(torch.cuda.device_count()), state["random_cuda"]):
                    torch.cuda.set_rng_state(random, device)
        except Exception as error:  # torch raises half a dozen types for a file that is damaged, or not of these parts
            raise UserError(
                self.path,
                found=f"a state that cannot be restored ({one_line(error)[:200]})",
                expected="the state of this training",
                fix="restore it from a copy, or remove it to begin the training again",
            ) from error
        self.logger.info("%s: resumed after epoch %d", self.path, engine.state.epoch)

    def save(self, engine: Engine) -> None:
        """Write the state of the training."""
        if idist.get_rank() != 0:
            return
        state = {name: state_of(part) for name, part in self.parts.items()}
        state |= {"epoch": engine.state.epoch, "iteration": engine.state.iteration, "random": torch.get_rng_state()}
        state["random_cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        save_checkpoint(state, self.path)


def check_types(found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse tensors whose type differs from those that they replace: `load_state_dict` would convert them silently, 0.7 to 0.

    Raises:
        ValueError: a type differs; the message names the first such tensor.
    """
    for key, tensor in own.items():
        if torch.is_tensor(tensor) and torch.is_tensor(found.get(key)) and found[key].dtype != tensor.dtype:
            raise ValueError(f"{key}: {found[key].dtype} in place of {tensor.dtype}")
