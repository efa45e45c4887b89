"""Where a network runs."""

from __future__ import annotations

import torch

from fedsr_monai.errors import UserError


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of this name; without one, the first GPU, or the CPU where there is none.

    Raises:
        UserError: there is no such device.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # an unknown name, no driver, no such number
        found = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU that torch can use"
        raise UserError(
            f"device: found {str(name)!r} and {found}, expected cpu, cuda or cuda:N; correct it or leave it out"
        ) from None
    return device
