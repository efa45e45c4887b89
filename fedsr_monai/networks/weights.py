"""Loading weights into a network: it gets everything that it needs, or an error; it never silently keeps random numbers."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedsr_monai.errors import UserError
from fedsr_monai.files import check_regular, is_there

ATLAS_KEYS = ("atlas_image", "atlas_label")
SEGMENTATION = "segmentation."
HEAD_PREFIXES = ("registration.", SEGMENTATION)
TRAINED_PREFIXES = ("encoder.", "sa.", *HEAD_PREFIXES)  # all but the atlas
CHECKPOINT = "the weights of a network: a state dict (.pt) or .safetensors"
Network = TypeVar("Network", bound=torch.nn.Module)


def read_checkpoint(path: str | os.PathLike, device: str | torch.device | None = "cpu") -> Any:
    """Read tensors and plain values that `torch.save` wrote, without running any code in the file.

    Unlike torch, this verifies the checksums in the file, so that even a single flipped bit is found.

    Args:
        path: the file.
        device: device to load the tensors to.

    Raises:
        UserError: it is not a regular file.
        Exception: it is damaged, or something else; torch raises half a dozen types.
    """
    check_regular(path, CHECKPOINT)
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):  # unlike files in the format of torch before 1.6
            with zipfile.ZipFile(file) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"other bytes than were written in {damaged}")
        file.seek(0)
        return torch.load(file, map_location=device, weights_only=True)


def check_finite(content: Any) -> None:
    """Refuse NaN and infinity in the tensors of nested mappings and lists.

    Raises:
        ValueError: a tensor has such a value; the message names the place.
    """
    if isinstance(content, (Mapping, list, tuple)):
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            try:
                check_finite(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
    elif torch.is_tensor(content) and not bool(torch.isfinite(content).all()):
        raise ValueError("NaN or infinite values")


def read_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by key, without running any code in the file.

    Args:
        path: a plain state dict (as the bundles have it), one under the key "model", or safetensors.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint.
    """
    path = Path(path)
    if not is_there(path):
        fix = "give the path of a model.pt or .safetensors"
        if path == Path("models/model.pt"):  # what a bundle looks for while its `bundle_root` is the working directory
            fix = "run in the folder of the bundle, or add --bundle_root with that folder"
        raise UserError(path, found="no such file", expected=CHECKPOINT, fix=fix)
    check_regular(path, CHECKPOINT, "give another file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else read_checkpoint(path)
        state = state.get("model", state)
        if not (isinstance(state, Mapping) and state and all(map(torch.is_tensor, state.values()))):
            raise ValueError("no tensors by name")
        if not all(isinstance(key, str) for key in state):
            raise ValueError("no tensors by name")
    except SafetensorError as error:
        raise UserError(
            path, found=f"a damaged file ({error})", expected=CHECKPOINT, fix="restore it from a copy"
        ) from None
    except Exception as error:  # torch raises half a dozen types for a file that is not its own
        found = f"something else, or a damaged file ({type(error).__name__})"
        raise UserError(path, found=found, expected=CHECKPOINT, fix="give another file") from error
    return dict(state)


def load_weights(
    network: Network, path: str | os.PathLike, optional: Sequence[str] = (), atlas: bool = False
) -> Network:
    """Load a checkpoint into `network` and return the network. The keys must be exactly the network's.

    Args:
        network: the network to load into.
        path: see `read_weights`.
        optional: key prefixes of parts that the file may lack as a whole; they then keep their values. (A server writes
            only encoder and SA features, which are loaded with `optional=HEAD_PREFIXES`.)
        atlas: load an atlas from the file too; otherwise the network keeps its own, because the atlas belongs to the site.

    Raises:
        UserError: the file is missing, or belongs to another network: a key is missing, foreign or of another shape.
    """
    state = read_weights(path)
    found = {key: value for key, value in state.items() if key not in ATLAS_KEYS}
    own = {key: value for key, value in network.state_dict().items() if key not in ATLAS_KEYS}
    absent = tuple(part for part in optional if not any(key.startswith(part) for key in found))
    own = {key: value for key, value in own.items() if not key.startswith(absent)}
    _check(path, found, own)
    if atlas:
        found |= {key: state[key] for key in ATLAS_KEYS if key in state}
    network.load_state_dict(found, strict=False)
    return network


def load_head(network: Network, path: str | os.PathLike | None) -> Network:
    """Replace the segmentation head of `network`, which has all its weights already, and return the network.

    Args:
        network: the network to load into.
        path: the tensors `segmentation.*`, float32 or float16 (see `read_weights`); None leaves the network as it is.

    Raises:
        UserError: the file is missing, or belongs to another network: a key is missing, foreign or of another shape.
    """
    if path is None:
        return network
    found = {key: value.float() if value.is_floating_point() else value for key, value in read_weights(path).items()}
    _check(path, found, {key: value for key, value in network.state_dict().items() if key.startswith(SEGMENTATION)})
    network.load_state_dict(found, strict=False)
    return network


def _check(path: str | os.PathLike, found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors whose keys, shapes or types differ from the network's, or that are not finite."""
    wrong = [key for key in sorted(set(found) | set(own)) if _shape(found.get(key)) != _shape(own.get(key))]
    if wrong:
        raise UserError(
            f"{path}: {wrong[0]}",
            found=f"{_shape(found.get(wrong[0]))} (the first of {len(wrong)} keys that differ)",
            expected=_shape(own.get(wrong[0])),
            fix="use weights of the same network (bundle and preset)",
        )
    broken = [key for key, value in sorted(found.items()) if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(
            f"{path}: {broken[0]}",
            found="NaN or infinite values",
            expected="finite numbers",
            fix="use weights of a training that did not diverge",
        )


def _shape(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
