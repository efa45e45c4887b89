"""Tensors on disk as safetensors files, which hold names and numbers, but no code that could run when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsr_monai.errors import UserError
from fedsr_monai.files import check_regular, write_bytes


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Write `tensors` in one step (the file is either the old or the new one, never a part) and return the bytes written.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    write_bytes(path, content)
    return content


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, sorted by key.

    Raises:
        UserError: the file is missing or damaged.
    """
    check_regular(path, "a safetensors file")
    try:
        return dict(sorted(load(Path(path).read_bytes()).items()))
    except OSError:
        raise UserError(path, found="no such file", expected="a safetensors file", fix="give the path of one") from None
    except SafetensorError as error:
        raise UserError(
            path, found=f"a damaged file ({error})", expected="safetensors", fix="restore it from a copy"
        ) from error


def size_in_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the size of `tensors` in the safetensors format, in bytes; 0 if there are none."""
    return len(save(dict(tensors))) if tensors else 0
