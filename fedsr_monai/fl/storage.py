"""Tensors on disk as safetensors files: names and numbers, nothing that runs when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsr_monai.atomic import atomic_path
from fedsr_monai.errors import UserError


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


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def remove_all_but(paths: list[Path], keep: int) -> None:
    """Delete all but the last `keep` of `paths`, whose names sort by age."""
    for path in sorted(paths)[: max(0, len(paths) - keep)]:
        path.unlink(missing_ok=True)
