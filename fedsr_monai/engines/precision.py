"""Which arithmetic a device is good at."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsr_monai.networks.fedsr_net import STRIDE


def bfloat16_pays(device: torch.device | str, shape: Sequence[int]) -> bool:
    """Whether autocast to bfloat16 makes training faster on this device, and is right, for scans of this shape.

    GPUs have it from compute capability 8.0 on. CPUs with AVX512-BF16 or AMX multiply bfloat16 in hardware (a joint step
    takes a third of its float32 time); all others emulate it, and take several times as long as in float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # The weight gradient of a bfloat16 convolution over 2 voxels along the first axis reads memory that nothing has
        # written (torch 2.13, AVX512-BF16; not in float32 and not at 1, 3 or more voxels): now and then it is NaN.
        coarsest = -(-shape[0] // STRIDE)
        return coarsest != 2 and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
