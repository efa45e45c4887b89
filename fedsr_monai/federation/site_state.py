"""What a site remembers between rounds: its whole network, optimisers, mutual information queue and counters, on its own disk.

`state_NNNN.pt` is the state from which round NNNN can begin. The last two are kept, so that a server that was killed and asks for the
last round again gets the same answer, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data.utils import set_rnd
from monai.engines import Trainer
from monai.utils import set_determinism

from fedsr_monai.errors import UserError, one_line
from fedsr_monai.files import check_regular, remove_all_but
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.handlers.resume import check_types
from fedsr_monai.networks.weights import check_finite, read_checkpoint

KEPT_STATES = 2
ATLAS_PREFIX = "atlas_"  # the site's atlas is read from the site folder, so it is not in the state


def stable_seed(*parts: object) -> int:
    """Return a seed in [0, 2^31) from any printable parts, the same in every process and Python version (unlike `hash`)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31


def seed_everything(seed: int, dataset: Any = None) -> None:
    """Seed Python, numpy, torch and MONAI, and every random transform of `dataset`, each of which has its own generator."""
    set_determinism(seed)
    if dataset is not None:
        set_rnd(dataset, seed)


def optimizers(trainer: Trainer) -> dict[str, torch.optim.Optimizer]:
    """Return the trainer's optimisers by name; a plain MONAI trainer has one."""
    return getattr(trainer, "optimizers", None) or {"optimizer": trainer.optimizer}


def stateful(handlers: Iterable[Any]) -> list[Any]:
    """Return those of a trainer's handlers that have a state; MONAI's `LrScheduleHandler` keeps its own in `lr_scheduler`."""
    parts = [getattr(handler, "lr_scheduler", handler) for handler in handlers]
    return [part for part in parts if hasattr(part, "state_dict") and hasattr(part, "load_state_dict")]


def collect_state(trainer: Trainer, handlers: Sequence[Any]) -> dict[str, Any]:
    """Return the state of local training; it holds only tensors, numbers and names, so `torch.load(weights_only=True)` can read it."""
    state = {
        "network": {
            key: value for key, value in trainer.network.state_dict().items() if not key.startswith(ATLAS_PREFIX)
        },
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers(trainer).items()},
        "handlers": [handler.state_dict() for handler in handlers],
        "epoch": trainer.state.epoch,
    }
    if getattr(trainer, "mutual_information", None) is not None:
        state["mutual_information"] = trainer.mutual_information.state_dict()
    return state


def restore_state(trainer: Trainer, handlers: Sequence[Any], state: dict[str, Any], source: Path) -> None:
    """Restore a state into a trainer and its handlers.

    Args:
        trainer: the bundle's trainer.
        handlers: its handlers that have a state.
        state: see `collect_state`.
        source: the file that the state was read from, for error messages.

    Raises:
        UserError: the state belongs to a network or trainer other than the bundle's.
    """
    try:
        _restore(trainer, handlers, state, source)
    except UserError:
        raise
    except Exception as error:  # torch raises half a dozen types for what is not a state of these parts
        raise UserError(
            source,
            found=f"a state that cannot be restored ({one_line(error)[:200]})",
            expected="a state of this bundle's training",
            fix="restore it from a copy, or give another --out",
        ) from error


def _restore(trainer: Trainer, handlers: Sequence[Any], state: dict[str, Any], source: Path) -> None:
    own = {key: value.shape for key, value in trainer.network.state_dict().items() if not key.startswith(ATLAS_PREFIX)}
    saved = {key: value.shape for key, value in state["network"].items()}
    for key in sorted(set(own) | set(saved)):
        if own.get(key) != saved.get(key):
            raise UserError(
                f"{source}: {key}",
                found=_shape(saved.get(key)),
                expected=_shape(own.get(key)),
                fix="continue with the bundle that the run began with, or give another --out",
            )
    check_types(state["network"], trainer.network.state_dict())
    trainer.network.load_state_dict(state["network"], strict=False)
    if ("mutual_information" in state) != (getattr(trainer, "mutual_information", None) is not None):
        raise KeyError("mutual_information")
    for name, optimizer in optimizers(trainer).items():
        optimizer.load_state_dict(state["optimizers"][name])
    for handler, saved in zip(handlers, state["handlers"]):
        handler.load_state_dict(saved)
    if "mutual_information" in state:
        trainer.mutual_information.load_state_dict(state["mutual_information"])
    trainer.state.epoch = state["epoch"]
    trainer.state.iteration = state["epoch"] * trainer.state.epoch_length


def save_state(folder: Path, round: int, trainer: Trainer, handlers: Sequence[Any]) -> None:
    """Write the state from which `round` can begin, in one step, and delete all but the last two.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    save_checkpoint({"round": round, **collect_state(trainer, handlers)}, folder / f"state_{round:04d}.pt")
    remove_all_but(state_files(folder), KEPT_STATES)


def load_state(
    folder: Path, round: int | None = None, device: torch.device | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """Return the file and content of the newest state from which `round` can begin (a site may have missed rounds).

    The result is None if the folder holds no states.

    Args:
        folder: folder of the site.
        round: None for the newest state of all.
        device: device to load the tensors to.

    Raises:
        UserError: the site is ahead of the server, or the file is damaged.
    """
    files = state_files(folder)
    if not files:
        return None
    usable = [file for file in files if round is None or int(file.stem.split("_")[1]) <= round]
    if not usable:
        raise UserError(
            files[0],
            found="a state that is ahead",
            expected=f"one for round {round} or before",
            fix="restore the server's folder of the same run, or give another --out",
        )
    check_regular(usable[-1], "a site state")
    try:
        state = read_checkpoint(usable[-1], device)
        check_finite(state)
        if not {"round", "network", "optimizers", "handlers", "epoch"} <= state.keys():
            raise ValueError("parts are missing")
        if state["round"] != int(usable[-1].stem.split("_")[1]) or not isinstance(state["epoch"], int):
            raise ValueError("of another round than its name says")
        return usable[-1], state
    except Exception as error:  # torch raises half a dozen types for a file that is not whole
        raise UserError(
            usable[-1],
            found=f"a damaged file ({type(error).__name__}: {one_line(error)[:200]})",
            expected="a site state",
            fix="restore it from a copy",
        ) from error


def state_files(folder: Path) -> list[Path]:
    """Return the site's states, oldest first."""
    return sorted(folder.glob("state_*.pt"))


def _shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(list(shape))
