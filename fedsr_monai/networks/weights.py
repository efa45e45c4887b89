"""Reading weights into a network: all that it needs or a clear refusal, never random numbers in silence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedsr_monai.errors import UserError

ATLAS = ("atlas_image", "atlas_label")
HEADS = ("registration.", "segmentation.")
Network = TypeVar("Network", bound=torch.nn.Module)


def read_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by key: `{"model": state_dict}`, a bare state dict, or safetensors. Nothing in it is
    run.

    Raises:
        UserError: there is no such file, or it is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: not found, expected the weights of a network; give the path of a model.pt or .safetensors"
        )
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        if not (isinstance(state, Mapping) and state and all(torch.is_tensor(value) for value in state.values())):
            raise ValueError("no tensors by name")
    except SafetensorError as error:
        raise UserError(
            f"{path}: found a damaged file ({error}), expected safetensors; restore it from a copy"
        ) from None
    except Exception as error:  # torch raises half a dozen types for a file that is not its own
        raise UserError(
            f"{path}: found no checkpoint ({type(error).__name__}), expected {{'model': state_dict}}"
        ) from error
    return dict(state)


def load_weights(
    network: Network, path: str | os.PathLike, optional: Sequence[str] = (), atlas: bool = False
) -> Network:
    """Load a checkpoint into `network` and return it. The keys must be exactly the network's.

    Args:
        network: what to load into.
        path: see `read_weights`.
        optional: key prefixes of parts that the file may lack as a whole; they then keep the numbers they have (encoder
            and SA features as a server writes them are loaded with `optional=HEADS`).
        atlas: take over an atlas from the file too; otherwise the network keeps its own, as the atlas is the site's.

    Raises:
        UserError: no such file, or one of another network: a key is missing, foreign or mis-shaped.
    """
    state = read_weights(path)
    found = {key: value for key, value in state.items() if key not in ATLAS}
    own = {key: value for key, value in network.state_dict().items() if key not in ATLAS}
    absent = tuple(part for part in optional if not any(key.startswith(part) for key in found))
    own = {key: value for key, value in own.items() if not key.startswith(absent)}
    wrong = [
        f"{key}: found {_shape(found.get(key))}, expected {_shape(own.get(key))}"
        for key in sorted(set(found) | set(own))
        if _shape(found.get(key)) != _shape(own.get(key))
    ]
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]} ({len(wrong)} in all); use weights of the same network (bundle and preset)"
        )
    broken = [key for key, value in sorted(found.items()) if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(
            f"{path}: {broken[0]}: found NaN or Inf, expected numbers; use weights of a training that ended well"
        )
    if atlas:
        found |= {key: state[key] for key in ATLAS if key in state}
    network.load_state_dict(found, strict=False)
    return network


def _shape(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
