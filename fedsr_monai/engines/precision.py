"""Which arithmetic a device is good at."""

from __future__ import annotations

import torch


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether autocast to bfloat16 makes a network faster on this device.

    GPUs have it from compute capability 8.0 on. CPUs with AVX512-BF16 or AMX multiply bfloat16 in hardware (a joint
    step takes a third of its float32 time); all others emulate it, and take several times as long as in float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
