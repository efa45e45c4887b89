"""Where a network runs: the device, the arithmetic that it is good at, and its memory."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

import torch

from fedsr_monai.errors import UserError

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device with this name; by default the first GPU, or the CPU if there is none.

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
            "device",
            found=f"{str(name)!r} and {found}",
            expected="cpu, cuda or cuda:N",
            fix="correct it or leave it out",
        ) from None
    return device


def bfloat16_pays(device: torch.device | str) -> bool:
    """Return whether autocast to bfloat16 makes a network faster on this device.

    GPUs have it from compute capability 8.0 on. CPUs with AMX multiply bfloat16 in hardware, and so do those with
    AVX512-BF16; but where a virtual machine hides the AMX of an Intel CPU, AVX512-BF16 by itself is slower than float32
    (a joint step on an Emerald Rapids takes 2.0 s in bfloat16 and 1.6 s in float32, benchmarks/README.md), while on AMD
    CPUs it is faster. All other CPUs emulate bfloat16 and take several times as long as in float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return True
        return torch.cpu._is_avx512_bf16_supported() and cpu_info("vendor_id") == "AuthenticAMD"
    return False


def cpu_info(field: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a field of Linux's description of this CPU ("vendor_id", "model name"), or "" on other systems."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def keep_freed_memory() -> bool:
    """Make the C library of this process keep what it frees for the next allocation, and return whether it can.

    By default glibc asks the kernel for every large tensor and gives it back after use, and the kernel zeroes each page
    again when it is first touched: 400 000 pages and 0.7 of 2.6 processor seconds in a joint step on 80 x 96 x 80
    voxels. The peak of the memory stays within 5 %, but it is not given back before the process ends, or before
    `release_freed_memory`. On other C libraries than glibc nothing is changed.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Give freed memory that the C library has kept back to the system, if that library is glibc.

    Call it between two parts of a task that need tensors of different sizes: the second part cannot use the fragments
    that the first leaves, so the memory of both would add up.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache  # `libc_ver` reads the interpreter's file each time
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
