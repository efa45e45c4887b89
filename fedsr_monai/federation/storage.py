"""Tensors on disk as safetensors files: names and numbers, nothing that runs when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsr_monai.errors import UserError
from fedsr_monai.files import atomic_path


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Write `tensors` in one step (the old file or the new one, never half); returns the bytes written."""
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return content


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, sorted by key.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return dict(sorted(load(Path(path).read_bytes()).items()))
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected a safetensors file; give the path of one") from None
    except SafetensorError as error:
        raise UserError(
            f"{path}: found a damaged file ({error}), expected safetensors; restore it from a copy"
        ) from error
